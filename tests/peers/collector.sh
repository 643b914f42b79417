#!/usr/bin/env bash
# Builds an OpenTelemetry Collector with the components that the tests need, from collector/: bash collector.sh
# INSTALL_DIR
# Needs Go 1.26 or newer and the Go module proxy. Takes about 4 minutes on two cores with empty caches.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need go "install Go 1.26 or newer from https://go.dev/dl"

build() {
  # Build in a copy, since Go adds the indirect requirements to go.mod and go.sum. `go mod tidy` is not used, because it
  # would also download the dependencies of all dependencies' tests.
  cp "$peers"/collector/* "$scratch"
  (cd "$scratch" && nice go build -mod=mod -trimpath -ldflags '-s -w' -o out .)
}

version=$(sed -n 's|.*go.opentelemetry.io/collector/otelcol v||p' "$peers/collector/go.mod")
ensure otelcol "$version-$(cat "$peers"/collector/* | sha256sum | cut -c1-12)" build
