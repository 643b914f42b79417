// Sends traces with the OpenTelemetry SDK for JavaScript. ../README.md says what it sends and what it writes.
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';

import { ROOT_CONTEXT, SpanStatusCode, createTraceState, trace } from '@opentelemetry/api';
import { ProtobufTraceSerializer } from '@opentelemetry/otlp-transformer';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BasicTracerProvider, BatchSpanProcessor } from '@opentelemetry/sdk-trace-base';

// Calls that each trace makes from service to service.
const DEPTH = 7;
// Values of all kinds that an attribute of this API can have. JSON has no NaN, and this SDK has no other way to write one.
const VALUES = {
  string: 'größer als nötig',
  'string.empty': '',
  'string.long': '0123456789'.repeat(30),
  bool: true,
  'bool.false': false,
  int: -42,
  'int.largest': Number.MAX_SAFE_INTEGER,
  'int.smallest': Number.MIN_SAFE_INTEGER,
  double: 0.1,
  strings: ['a', '', 'ß'],
  bools: [true, false],
  ints: [1, -2, 3],
  doubles: [1.5, -2.5],
};
// The packages of the exporters are named after their encoding.
const PACKAGES = { grpc: 'grpc', 'http/protobuf': 'proto', 'http/json': 'http' };

const { values: options } = parseArgs({
  options: {
    endpoint: { type: 'string', multiple: true },
    protocol: { type: 'string' },
    compression: { type: 'string' },
    traces: { type: 'string' },
    sent: { type: 'string' },
  },
});
const { OTLPTraceExporter } = await import(`@opentelemetry/exporter-trace-otlp-${PACKAGES[options.protocol]}`);

const requests = [];
let acknowledged = 0;
let refused = 0;

// Returns an exporter that also notes what it got through, and how many spans it did not.
function remembering(exporter) {
  return {
    export(spans, done) {
      exporter.export(spans, (result) => {
        if (result.code === 0) {
          requests.push(ProtobufTraceSerializer.serializeRequest(spans));
          acknowledged += spans.length;
        } else {
          console.error(String(result.error));
          refused += spans.length;
        }
        done(result);
      });
    },
    forceFlush: () => exporter.forceFlush?.() ?? Promise.resolve(),
    shutdown: () => exporter.shutdown(),
  };
}

function service(endpoint, number) {
  const url = options.protocol === 'grpc' ? `http://${endpoint}` : `http://${endpoint}/v1/traces`;
  const exporter = remembering(new OTLPTraceExporter({ url, compression: options.compression }));
  const attributes = {
    'service.name': `service-${number}`,
    'service.instance.id': endpoint,
    'process.command_args': ['a', 'b'],
  };
  return new BasicTracerProvider({
    resource: resourceFromAttributes(attributes, { schemaUrl: 'https://opentelemetry.io/schemas/1.21.0' }),
    spanProcessors: [
      new BatchSpanProcessor(exporter, { maxExportBatchSize: 100, maxQueueSize: 10_000, scheduledDelayMillis: 200 }),
    ],
  });
}

// Returns the context of a span of another process.
function elsewhere() {
  return {
    traceId: randomBytes(16).toString('hex'),
    spanId: randomBytes(8).toString('hex'),
    traceFlags: 1,
    isRemote: true,
    traceState: createTraceState('vendor=t61rcWkgMzE,other=1'),
  };
}

// One span, and within it the next call, of another service; its context is what a header would carry.
function call(tracers, number, depth, context) {
  const tracer = tracers[(number + depth) % tracers.length];
  const attributes = { 'trace.number': number, ...VALUES };
  const links = [{ context: elsewhere(), attributes: VALUES }];
  const span = tracer.startSpan(`step ${depth}`, { kind: depth % 5, attributes, links }, context);
  span.addEvent('arrived', VALUES);
  if (depth === 1) {
    span.recordException(new Error('as it was told to'));
  }
  if (depth + 1 < DEPTH) {
    call(tracers, number, depth + 1, trace.setSpan(context, span));
  } else if (number % 2 === 0) {
    span.setStatus({ code: SpanStatusCode.ERROR, message: 'as it was told to' });
  } else {
    span.setStatus({ code: SpanStatusCode.OK });
  }
  span.end();
}

const providers = options.endpoint.map(service);
const tracers = providers.map((provider) => provider.getTracer('sdk', '1', { schemaUrl: 'https://example.com/schema' }));
const traces = Number(options.traces);
for (let number = 0; number < traces; number++) {
  call(tracers, number, 0, trace.setSpanContext(ROOT_CONTEXT, elsewhere()));
}
await Promise.all(providers.map((provider) => provider.shutdown()));

writeFileSync(options.sent, Buffer.concat(requests));
console.log(`${acknowledged} of ${traces * DEPTH} spans acknowledged, ${refused} refused`);
process.exit(acknowledged === traces * DEPTH ? 0 : 1);
