#!/usr/bin/env bash
# Builds Jaeger's all-in-one (OTLP input, traces in memory, query API, no web pages): bash jaeger.sh INSTALL_DIR
# Needs Go 1.26 or newer and the Go module proxy. Takes about two minutes on two cores with empty caches.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need go "install Go 1.26 or newer from https://go.dev/dl"
# Later versions require Collector modules that are not available.
version=v1.62.0 module=github.com/jaegertracing/jaeger

build() {
  # Build in a module of its own: `go install` refuses a main package whose module has replace directives.
  mkdir "$scratch/jaeger"
  local info="$module/pkg/version"
  (
    cd "$scratch/jaeger"
    go mod init peers/jaeger
    go mod edit -require="$module@$version"
    nice go build -mod=mod -trimpath -o ../out \
      -ldflags "-s -w -X $info.latestVersion=$version -X $info.commitSHA=none -X $info.date=none" "$module/cmd/all-in-one"
  )
}

ensure jaeger "$version" build
