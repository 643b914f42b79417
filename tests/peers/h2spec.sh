#!/usr/bin/env bash
# Builds h2spec, a conformance test for HTTP/2 servers: bash h2spec.sh INSTALL_DIR
# Needs Go 1.26 or newer and the Go module proxy. Takes about half a minute on two cores with empty caches.
# This is the newest version on the proxy: later releases are tagged v2, but their module path does not end with /v2.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need go "install Go 1.26 or newer from https://go.dev/dl"

build() {
  # Build in a copy, since Go writes go.sum and adds the indirect requirements to go.mod.
  cp "$peers/h2spec/go.mod" "$scratch"
  (cd "$scratch" && nice go build -mod=mod -trimpath -ldflags '-s -w' -o out github.com/summerwind/h2spec/cmd/h2spec)
}

version=$(sed -n 's|.*summerwind/h2spec v\([^+]*\).*|\1|p' "$peers/h2spec/go.mod")
ensure h2spec "$version-$(sha256sum <"$peers/h2spec/go.mod" | cut -c1-12)" build
