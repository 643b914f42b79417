#!/usr/bin/env bash
# Builds an OpenTelemetry Collector with what the tests need, from collector/: bash collector.sh INSTALL_DIR
# Needs Go 1.26 or newer and the Go module proxy. About 4 minutes on two cores with empty caches.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need go "install Go 1.26 or newer from https://go.dev/dl"

build() {
  # Built in a copy: Go completes go.mod and go.sum with what these few requirements need. `go mod tidy` is not used, since it
  # would also ask for the dependencies of every dependency's tests.
  cp "$peers"/collector/* "$scratch"
  (cd "$scratch" && nice go build -mod=mod -trimpath -ldflags '-s -w' -o out .)
}

version=$(sed -n 's|.*go.opentelemetry.io/collector/otelcol v||p' "$peers/collector/go.mod")
ensure otelcol "$version-$(cat "$peers"/collector/* | sha256sum | cut -c1-12)" build
