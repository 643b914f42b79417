import static io.opentelemetry.api.common.AttributeKey.booleanArrayKey;
import static io.opentelemetry.api.common.AttributeKey.doubleArrayKey;
import static io.opentelemetry.api.common.AttributeKey.longArrayKey;
import static io.opentelemetry.api.common.AttributeKey.stringArrayKey;
import static io.opentelemetry.api.common.AttributeKey.valueKey;

import io.opentelemetry.api.common.Attributes;
import io.opentelemetry.api.common.Value;
import io.opentelemetry.api.trace.Span;
import io.opentelemetry.api.trace.SpanContext;
import io.opentelemetry.api.trace.SpanKind;
import io.opentelemetry.api.trace.StatusCode;
import io.opentelemetry.api.trace.TraceFlags;
import io.opentelemetry.api.trace.TraceState;
import io.opentelemetry.api.trace.Tracer;
import io.opentelemetry.context.Context;
import io.opentelemetry.exporter.internal.otlp.traces.TraceRequestMarshaler;
import io.opentelemetry.exporter.otlp.http.trace.OtlpHttpSpanExporter;
import io.opentelemetry.exporter.otlp.trace.OtlpGrpcSpanExporter;
import io.opentelemetry.sdk.common.CompletableResultCode;
import io.opentelemetry.sdk.resources.Resource;
import io.opentelemetry.sdk.trace.SdkTracerProvider;
import io.opentelemetry.sdk.trace.data.SpanData;
import io.opentelemetry.sdk.trace.export.BatchSpanProcessor;
import io.opentelemetry.sdk.trace.export.SpanExporter;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.TimeUnit;

/** Sends traces with the OpenTelemetry SDK for Java. ../README.md says what it sends and what it writes. */
public final class Send {
  /** Calls that each trace makes from service to service. */
  private static final int DEPTH = 7;

  /** Values of all kinds that an attribute can have. */
  private static final Attributes VALUES =
      Attributes.builder()
          .put("string", "größer als nötig")
          .put("string.empty", "")
          .put("string.long", "0123456789".repeat(30))
          .put("bool", true)
          .put("bool.false", false)
          .put("int", -42)
          .put("int.largest", Long.MAX_VALUE)
          .put("int.smallest", Long.MIN_VALUE)
          .put("double", 0.1)
          .put("double.whole", 3.0)
          .put("double.infinite", Double.POSITIVE_INFINITY)
          .put("double.nan", Double.NaN)
          .put(stringArrayKey("strings"), List.of("a", "", "ß"))
          .put(booleanArrayKey("bools"), List.of(true, false))
          .put(longArrayKey("ints"), List.of(1L, -2L, 3L))
          .put(doubleArrayKey("doubles"), List.of(1.5, -2.5))
          .put(valueKey("bytes"), Value.of(new byte[] {0, 1, 127, -128, -1}))
          .put(
              valueKey("map"),
              Value.of(Map.of("list", Value.of(Value.of("mixed"), Value.of(1), Value.of(true), Value.of(Map.of())))))
          .build();

  private static final Random RANDOM = new Random();

  private final ByteArrayOutputStream requests = new ByteArrayOutputStream();
  private int acknowledged;
  private int refused;

  /** An exporter that also notes what it got through, and how many spans it did not. */
  private final class Remembering implements SpanExporter {
    private final SpanExporter exporter;

    Remembering(SpanExporter exporter) {
      this.exporter = exporter;
    }

    @Override
    public CompletableResultCode export(Collection<SpanData> spans) {
      CompletableResultCode result = exporter.export(spans);
      List<SpanData> copy = List.copyOf(spans);
      return result.whenComplete(() -> note(copy, result.isSuccess()));
    }

    @Override
    public CompletableResultCode flush() {
      return exporter.flush();
    }

    @Override
    public CompletableResultCode shutdown() {
      return exporter.shutdown();
    }
  }

  private synchronized void note(List<SpanData> spans, boolean isAcknowledged) {
    if (!isAcknowledged) {
      refused += spans.size();
      return;
    }
    try {
      TraceRequestMarshaler.create(spans).writeBinaryTo(requests);
    } catch (IOException cannotHappen) {
      throw new IllegalStateException(cannotHappen);
    }
    acknowledged += spans.size();
  }

  private static SpanExporter exporter(String endpoint, String protocol, String compression) {
    return switch (protocol) {
      case "grpc" ->
          OtlpGrpcSpanExporter.builder().setEndpoint("http://" + endpoint).setCompression(compression).build();
      case "http/protobuf" ->
          OtlpHttpSpanExporter.builder()
              .setEndpoint("http://" + endpoint + "/v1/traces")
              .setCompression(compression)
              .build();
      default -> throw new IllegalArgumentException("this SDK has no exporter for " + protocol);
    };
  }

  private SdkTracerProvider service(int number, String endpoint, SpanExporter exporter) {
    Attributes attributes =
        Attributes.builder()
            .put("service.name", "service-" + number)
            .put("service.instance.id", endpoint)
            .put("process.command_args", "a", "b")
            .build();
    BatchSpanProcessor processor =
        BatchSpanProcessor.builder(new Remembering(exporter))
            .setMaxExportBatchSize(100)
            .setMaxQueueSize(10_000)
            .setScheduleDelay(Duration.ofMillis(200))
            .build();
    return SdkTracerProvider.builder()
        .setResource(Resource.create(attributes, "https://opentelemetry.io/schemas/1.21.0"))
        .addSpanProcessor(processor)
        .build();
  }

  /** Returns the context of a span of another process. */
  private static SpanContext elsewhere() {
    String trace = String.format("%016x%016x", RANDOM.nextLong() | 1, RANDOM.nextLong());
    TraceState state = TraceState.builder().put("other", "1").put("vendor", "t61rcWkgMzE").build();
    String span = String.format("%016x", RANDOM.nextLong() | 1);
    return SpanContext.createFromRemoteParent(trace, span, TraceFlags.getSampled(), state);
  }

  /** One span, and within it the next call, of another service; its context is what a header would carry. */
  private static void call(List<Tracer> tracers, int number, int depth, Context context) {
    Tracer tracer = tracers.get((number + depth) % tracers.size());
    Span span =
        tracer
            .spanBuilder("step " + depth)
            .setParent(context)
            .setSpanKind(SpanKind.values()[depth % 5])
            .setAttribute("trace.number", number)
            .setAllAttributes(VALUES)
            .addLink(elsewhere(), VALUES)
            .startSpan();
    span.addEvent("arrived", VALUES);
    if (depth == 1) {
      span.recordException(new IllegalStateException("as it was told to"));
    }
    if (depth + 1 < DEPTH) {
      call(tracers, number, depth + 1, context.with(span));
    } else if (number % 2 == 0) {
      span.setStatus(StatusCode.ERROR, "as it was told to");
    } else {
      span.setStatus(StatusCode.OK);
    }
    span.end();
  }

  private int run(List<String> endpoints, Map<String, String> options) throws IOException {
    List<SdkTracerProvider> providers = new ArrayList<>();
    List<Tracer> tracers = new ArrayList<>();
    for (String endpoint : endpoints) {
      SpanExporter exporter = exporter(endpoint, options.get("--protocol"), options.get("--compression"));
      SdkTracerProvider provider = service(providers.size(), endpoint, exporter);
      providers.add(provider);
      tracers.add(
          provider
              .tracerBuilder("sdk")
              .setInstrumentationVersion("1")
              .setSchemaUrl("https://example.com/schema")
              .build());
    }
    int traces = Integer.parseInt(options.get("--traces"));
    for (int number = 0; number < traces; number++) {
      call(tracers, number, 0, Context.root().with(Span.wrap(elsewhere())));
    }
    for (SdkTracerProvider provider : providers) {
      provider.shutdown().join(60, TimeUnit.SECONDS);
    }
    Files.write(Path.of(options.get("--sent")), requests.toByteArray());
    System.out.printf("%d of %d spans acknowledged, %d refused%n", acknowledged, traces * DEPTH, refused);
    return acknowledged == traces * DEPTH ? 0 : 1;
  }

  public static void main(String[] arguments) throws IOException {
    List<String> endpoints = new ArrayList<>();
    Map<String, String> options = new HashMap<>();
    for (int at = 0; at + 1 < arguments.length; at += 2) {
      if (arguments[at].equals("--endpoint")) {
        endpoints.add(arguments[at + 1]);
      } else {
        options.put(arguments[at], arguments[at + 1]);
      }
    }
    System.exit(new Send().run(endpoints, options));
  }
}
