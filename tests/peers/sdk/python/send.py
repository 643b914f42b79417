"""Sends traces with the OpenTelemetry SDK for Python. ../README.md says what it sends and what it writes."""

import argparse
import importlib
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

# Calls that each trace makes from service to service.
DEPTH = 7
# Traces that are in the making at once.
THREADS = 8
# Values of all kinds that an attribute can have.
VALUES = {
    "string": "größer als nötig",
    "string.empty": "",
    "string.long": "0123456789" * 30,
    "bool": True,
    "bool.false": False,
    "int": -42,
    "int.largest": 2**63 - 1,
    "int.smallest": -(2**63),
    "double": 0.1,
    "double.whole": 3.0,
    "double.infinite": float("inf"),
    "double.nan": float("nan"),
    "bytes": bytes(range(256)),
    "strings": ["a", "", "ß"],
    "bools": [True, False],
    "ints": [1, -2, 3],
    "doubles": [1.5, -2.5],
    "map": {"inner": {"list": ["mixed", 1, 0.5, True, b"\x00"], "empty": {}}},
}


class Remembering(SpanExporter):
    """An exporter that also notes what it got through, and how many spans it did not."""

    lock = threading.Lock()
    requests = []
    acknowledged = 0
    refused = 0

    def __init__(self, exporter):
        self.exporter = exporter

    def export(self, spans):
        result = self.exporter.export(spans)
        with Remembering.lock:
            if result is SpanExportResult.SUCCESS:
                Remembering.requests.append(encode_spans(spans).SerializeToString())
                Remembering.acknowledged += len(spans)
            else:
                Remembering.refused += len(spans)
        return result

    def shutdown(self):
        self.exporter.shutdown()


def exporter(endpoint, protocol, is_gzip):
    if protocol == "grpc":
        import grpc
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        compression = grpc.Compression.Gzip if is_gzip else grpc.Compression.NoCompression
        return OTLPSpanExporter(endpoint=endpoint, insecure=True, compression=compression)
    path = {"http/protobuf": "proto.http", "http/json": "json.http"}[protocol]
    module = importlib.import_module(f"opentelemetry.exporter.otlp.{path}.trace_exporter")
    compression = module.Compression("gzip" if is_gzip else "none")
    return module.OTLPSpanExporter(endpoint=f"http://{endpoint}/v1/traces", compression=compression)


def service(number, endpoint, protocol, is_gzip):
    attributes = {"service.name": f"service-{number}", "service.instance.id": endpoint, "process.command_args": ["a", "b"]}
    provider = TracerProvider(resource=Resource.create(attributes, "https://opentelemetry.io/schemas/1.21.0"))
    processor = BatchSpanProcessor(
        Remembering(exporter(endpoint, protocol, is_gzip)), max_export_batch_size=100, schedule_delay_millis=200
    )
    provider.add_span_processor(processor)
    return provider


def elsewhere(trace_id):
    """The context of a span of another process."""
    state = trace.TraceState([("vendor", "t61rcWkgMzE"), ("other", "1")])
    return trace.SpanContext(trace_id, random.getrandbits(64) | 1, True, trace.TraceFlags(1), state)


def call(tracers, number, depth, context):
    """One span, and within it the next call, of another service; its context is what a header would carry."""
    tracer = tracers[(number + depth) % len(tracers)]
    kind = list(trace.SpanKind)[depth % 5]
    links = [trace.Link(elsewhere(random.getrandbits(128) | 1), VALUES)]
    attributes = {"trace.number": number, **VALUES}
    with tracer.start_as_current_span(f"step {depth}", context, kind=kind, attributes=attributes, links=links) as span:
        span.add_event("arrived", VALUES)
        if depth == 1:
            span.record_exception(ValueError("as it was told to"))
        if depth + 1 < DEPTH:
            call(tracers, number, depth + 1, None)
        elif number % 2 == 0:
            span.set_status(trace.Status(trace.StatusCode.ERROR, "as it was told to"))
        else:
            span.set_status(trace.Status(trace.StatusCode.OK))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--endpoint", action="append", required=True)
    arguments.add_argument("--protocol", choices=["grpc", "http/protobuf", "http/json"], required=True)
    arguments.add_argument("--compression", choices=["none", "gzip"], required=True)
    arguments.add_argument("--traces", type=int, required=True)
    arguments.add_argument("--sent", required=True)
    arguments = arguments.parse_args()

    is_gzip = arguments.compression == "gzip"
    providers = [service(number, at, arguments.protocol, is_gzip) for number, at in enumerate(arguments.endpoint)]
    scope = {"scope.string": "a", "scope.int": 1}
    tracers = [provider.get_tracer("sdk", "1", "https://example.com/schema", scope) for provider in providers]

    def make(number):
        parent = trace.NonRecordingSpan(elsewhere(random.getrandbits(128) | 1))
        call(tracers, number, 0, trace.set_span_in_context(parent))

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(make, range(arguments.traces)))
    for provider in providers:
        provider.shutdown()

    with open(arguments.sent, "wb") as file:
        file.write(b"".join(Remembering.requests))
    made = arguments.traces * DEPTH
    print(f"{Remembering.acknowledged} of {made} spans acknowledged, {Remembering.refused} refused")
    return 0 if Remembering.acknowledged == made else 1


sys.exit(main())
