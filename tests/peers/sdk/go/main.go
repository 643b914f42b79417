// Sends traces with the OpenTelemetry SDK for Go. ../README.md says what it sends and what it writes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

const (
	// depth is the number of calls that each trace makes from service to service.
	depth = 7
	// schema is the schema URL of resources.
	schema = "https://opentelemetry.io/schemas/1.21.0"
)

// values has all kinds of values that an attribute can have.
var values = []attribute.KeyValue{
	attribute.String("string", "größer als nötig"),
	attribute.String("string.empty", ""),
	attribute.String("string.long", strings.Repeat("0123456789", 30)),
	attribute.Bool("bool", true),
	attribute.Bool("bool.false", false),
	attribute.Int("int", -42),
	attribute.Int64("int.largest", math.MaxInt64),
	attribute.Int64("int.smallest", math.MinInt64),
	attribute.Float64("double", 0.1),
	attribute.Float64("double.whole", 3),
	attribute.Float64("double.infinite", math.Inf(1)),
	attribute.Float64("double.nan", math.NaN()),
	attribute.ByteSlice("bytes", []byte{0, 1, 127, 128, 255}),
	attribute.StringSlice("strings", []string{"a", "", "ß"}),
	attribute.BoolSlice("bools", []bool{true, false}),
	attribute.IntSlice("ints", []int{1, -2, 3}),
	attribute.Float64Slice("doubles", []float64{1.5, -2.5}),
	attribute.Map("map", attribute.Slice("list", attribute.StringValue("mixed"), attribute.IntValue(1), attribute.BoolValue(true)),
		attribute.Map("empty")),
}

// remembering is an exporter's client that also notes what it got through, and how many spans it did not.
type remembering struct {
	otlptrace.Client
	*notes
}

type notes struct {
	lock                  sync.Mutex
	requests              []byte
	acknowledged, refused int
}

func (client remembering) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	err := client.Client.UploadTraces(ctx, spans)
	number := 0
	for _, resource := range spans {
		for _, scope := range resource.ScopeSpans {
			number += len(scope.Spans)
		}
	}
	client.lock.Lock()
	defer client.lock.Unlock()
	if err != nil {
		log.Print(err)
		client.refused += number
		return err
	}
	// A request has the same bytes as this message: a list of resources in field 1.
	request, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	client.requests = append(client.requests, request...)
	client.acknowledged += number
	return err
}

func newClient(endpoint, protocol string, isGzip bool) (otlptrace.Client, error) {
	switch protocol {
	case "grpc":
		options := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(endpoint), otlptracegrpc.WithInsecure()}
		if isGzip {
			options = append(options, otlptracegrpc.WithCompressor("gzip"))
		}
		return otlptracegrpc.NewClient(options...), nil
	case "http/protobuf":
		options := []otlptracehttp.Option{otlptracehttp.WithEndpoint(endpoint), otlptracehttp.WithInsecure()}
		if isGzip {
			options = append(options, otlptracehttp.WithCompression(otlptracehttp.GzipCompression))
		}
		return otlptracehttp.NewClient(options...), nil
	}
	return nil, errors.New("this SDK has no exporter for " + protocol)
}

func service(number int, endpoint string, client otlptrace.Client) (*sdk.TracerProvider, error) {
	exporter, err := otlptrace.New(context.Background(), client)
	if err != nil {
		return nil, err
	}
	attributes := resource.NewWithAttributes(schema, attribute.String("service.name", fmt.Sprintf("service-%d", number)),
		attribute.String("service.instance.id", endpoint), attribute.StringSlice("process.command_args", []string{"a", "b"}))
	batches := sdk.WithBatcher(exporter, sdk.WithMaxExportBatchSize(100), sdk.WithBatchTimeout(200*time.Millisecond),
		sdk.WithBlocking())
	return sdk.NewTracerProvider(batches, sdk.WithResource(attributes)), nil
}

// elsewhere returns the context of a span of another process.
func elsewhere() trace.SpanContext {
	config := trace.SpanContextConfig{TraceFlags: trace.FlagsSampled, Remote: true}
	for n := range config.TraceID {
		config.TraceID[n] = byte(1 + rand.IntN(255))
	}
	for n := range config.SpanID {
		config.SpanID[n] = byte(1 + rand.IntN(255))
	}
	config.TraceState, _ = trace.ParseTraceState("vendor=t61rcWkgMzE,other=1")
	return trace.NewSpanContext(config)
}

// call makes one span, and within it the next call, of another service; its context is what a header would carry.
func call(ctx context.Context, tracers []trace.Tracer, number, at int) {
	tracer := tracers[(number+at)%len(tracers)]
	ctx, span := tracer.Start(ctx, fmt.Sprintf("step %d", at), trace.WithSpanKind(trace.SpanKind(1+at%5)),
		trace.WithAttributes(attribute.Int("trace.number", number)), trace.WithAttributes(values...),
		trace.WithLinks(trace.Link{SpanContext: elsewhere(), Attributes: values}))
	defer span.End()
	span.AddEvent("arrived", trace.WithAttributes(values...))
	if at == 1 {
		span.RecordError(errors.New("as it was told to"))
	}
	switch {
	case at+1 < depth:
		call(ctx, tracers, number, at+1)
	case number%2 == 0:
		span.SetStatus(codes.Error, "as it was told to")
	default:
		span.SetStatus(codes.Ok, "")
	}
}

func run() error {
	var endpoints []string
	flag.Func("endpoint", "HOST:PORT, can be repeated", func(endpoint string) error {
		endpoints = append(endpoints, endpoint)
		return nil
	})
	protocol := flag.String("protocol", "", "grpc or http/protobuf")
	compression := flag.String("compression", "", "none or gzip")
	traces := flag.Int("traces", 0, "number of traces")
	sent := flag.String("sent", "", "file for what was acknowledged")
	flag.Parse()

	var providers []*sdk.TracerProvider
	var tracers []trace.Tracer
	notes := &notes{}
	for number, endpoint := range endpoints {
		client, err := newClient(endpoint, *protocol, *compression == "gzip")
		if err != nil {
			return err
		}
		provider, err := service(number, endpoint, remembering{client, notes})
		if err != nil {
			return err
		}
		providers = append(providers, provider)
		tracers = append(tracers, provider.Tracer("sdk", trace.WithInstrumentationVersion("1"),
			trace.WithSchemaURL("https://example.com/schema"), trace.WithInstrumentationAttributes(
				attribute.String("scope.string", "a"), attribute.Int("scope.int", 1))))
	}
	for number := range *traces {
		call(trace.ContextWithRemoteSpanContext(context.Background(), elsewhere()), tracers, number, 0)
	}
	for _, provider := range providers {
		if err := provider.Shutdown(context.Background()); err != nil {
			return err
		}
	}
	fmt.Printf("%d of %d spans acknowledged, %d refused\n", notes.acknowledged, *traces*depth, notes.refused)
	if notes.acknowledged != *traces*depth {
		return errors.New("not all spans were acknowledged")
	}
	return os.WriteFile(*sent, notes.requests, 0o644)
}

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}
