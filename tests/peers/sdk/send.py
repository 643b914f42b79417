"""Sends traces with the OpenTelemetry SDK and says which spans were acknowledged.

Each endpoint gets a service of its own, with the provider, the batches and the exporter that an application has. A trace
begins in one service and goes on in the others, so that its spans leave by all endpoints, in many requests, each of which
holds pieces of many traces. Every second trace has a failed span.

    send.py --endpoint HOST:PORT [--endpoint HOST:PORT ...] [--gzip] [--traces N] --sent FILE

FILE gets {"TRACE": {"failed": true, "spans": ["SPAN", ...]}, ...} of the spans whose export the SDK counts as a success.
"""

import argparse
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

# Calls that each trace makes from service to service.
DEPTH = 7
# Traces that are in the making at once.
THREADS = 8


class Remembering(OTLPSpanExporter):
    """The SDK's exporter, which also notes what it got through and what it did not."""

    lock = threading.Lock()
    acknowledged = []
    lost = 0

    def export(self, spans):
        result = super().export(spans)
        with Remembering.lock:
            if result is SpanExportResult.SUCCESS:
                Remembering.acknowledged += [span.get_span_context() for span in spans]
            else:
                Remembering.lost += len(spans)
        return result


def service(number, endpoint, is_gzip):
    compression = grpc.Compression.Gzip if is_gzip else grpc.Compression.NoCompression
    exporter = Remembering(endpoint=endpoint, insecure=True, compression=compression)
    resource = Resource.create({"service.name": f"service-{number}", "service.instance.id": endpoint})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=100, schedule_delay_millis=200))
    return provider


def call(tracers, number, depth):
    """One span, and within it the next call, of another service; its context is what a header would carry."""
    tracer = tracers[(number + depth) % len(tracers)]
    kind = trace.SpanKind.SERVER if depth == 0 else trace.SpanKind.CLIENT
    with tracer.start_as_current_span(f"step {depth}", kind=kind, attributes={"trace.number": number}) as span:
        span.add_event("arrived", {"note": "größer als nötig", "sizes": [1, 2, 3]})
        if depth + 1 < DEPTH:
            call(tracers, number, depth + 1)
        elif number % 2 == 0:
            span.set_status(trace.Status(trace.StatusCode.ERROR, "as it was told to"))
    return span.get_span_context().trace_id


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--endpoint", action="append", required=True)
    arguments.add_argument("--gzip", action="store_true")
    arguments.add_argument("--traces", type=int, default=200)
    arguments.add_argument("--sent", required=True)
    arguments = arguments.parse_args()

    providers = [service(number, at, arguments.gzip) for number, at in enumerate(arguments.endpoint)]
    tracers = [provider.get_tracer("sdk", "1") for provider in providers]
    with ThreadPoolExecutor(THREADS) as threads:
        ids = list(threads.map(lambda number: call(tracers, number, 0), range(arguments.traces)))
    for provider in providers:
        provider.shutdown()

    sent = {format(id, "032x"): {"failed": number % 2 == 0, "spans": []} for number, id in enumerate(ids)}
    for context in Remembering.acknowledged:
        sent[format(context.trace_id, "032x")]["spans"].append(format(context.span_id, "016x"))
    with open(arguments.sent, "w") as file:
        json.dump(sent, file)
    made = arguments.traces * DEPTH
    print(f"{len(Remembering.acknowledged)} of {made} spans acknowledged, {Remembering.lost} refused")
    return 0 if len(Remembering.acknowledged) == made else 1


sys.exit(main())
