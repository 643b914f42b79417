#!/usr/bin/env bash
# Builds h2spec, which checks a server of HTTP/2 against its standard: bash h2spec.sh INSTALL_DIR
# Needs Go 1.26 or newer and the Go module proxy. About half a minute on two cores with empty caches.
# The newest that the proxy serves: later releases name themselves v2 without being a module of that name.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need go "install Go 1.26 or newer from https://go.dev/dl"

build() {
  # In a copy: Go writes go.sum, and completes go.mod with what these few requirements need.
  cp "$peers/h2spec/go.mod" "$scratch"
  (cd "$scratch" && nice go build -mod=mod -trimpath -ldflags '-s -w' -o out github.com/summerwind/h2spec/cmd/h2spec)
}

version=$(sed -n 's|.*summerwind/h2spec v\([^+]*\).*|\1|p' "$peers/h2spec/go.mod")
ensure h2spec "$version-$(sha256sum <"$peers/h2spec/go.mod" | cut -c1-12)" build
