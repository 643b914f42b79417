#!/usr/bin/env bash
# Installs cargo-deny and shellcheck, which .ci/run uses: bash cargo-tools.sh INSTALL_DIR
# cargo-deny needs Rust, a C compiler and crates.io. It is built without optimisation, which is fast enough for one
# dependency graph.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need cargo "install Rust from https://rustup.rs"
version=0.20.2

build() {
  CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$scratch/target" nice \
    cargo install --quiet --locked --debug --root "$scratch" cargo-deny --version "$version"
  mv "$scratch/bin/cargo-deny" "$scratch/out"
}

ensure cargo-deny "$version" build
if ! command -v shellcheck >/dev/null; then
  debian shellcheck || echo "shellcheck: not installed"
fi
