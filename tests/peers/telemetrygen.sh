#!/usr/bin/env bash
# Builds telemetrygen, the load generator of the OpenTelemetry project: bash telemetrygen.sh INSTALL_DIR
# Needs Go 1.26 or newer and the Go module proxy. Takes about a minute on two cores with empty caches.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need go "install Go 1.26 or newer from https://go.dev/dl"
version=0.161.0

build() {
  GOBIN="$scratch" nice go install -trimpath -ldflags '-s -w' \
    "github.com/open-telemetry/opentelemetry-collector-contrib/cmd/telemetrygen@v$version"
  mv "$scratch/telemetrygen" "$scratch/out"
}

ensure telemetrygen "$version" build
