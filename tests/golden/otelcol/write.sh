#!/usr/bin/env bash
# Writes ../otelcol.csv by the source of the Collector's load-balancing exporter, in one version for each of its three
# rings. Needs Go 1.26 or newer and the Go module proxy. Takes a few seconds.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
module=github.com/open-telemetry/opentelemetry-collector-contrib/exporter/loadbalancingexporter
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# placed RING VERSION: prints the rows of one ring.
placed() {
  local folder=$scratch/$1 source
  mkdir "$folder"
  cd "$folder"
  cp "$here/main.go" .
  go mod init rings 2>/dev/null
  source=$(go mod download -json "$module@$2" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  # This file needs nothing but Go's standard library.
  sed 's/^package .*/package main/' "$source/consistent_hashing.go" >ring.go
  go run . "$1"
}

{
  echo "ring,case,key,slot,owner"
  placed otelcol_v1 v0.129.0
  placed otelcol_v2 v0.150.0
  placed otelcol_v3 v0.157.0
} >"$scratch/golden"
mv "$scratch/golden" "$here/../otelcol.csv"
