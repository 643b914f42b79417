#!/usr/bin/env bash
# Generates clients of spanring.admin.v1.Ring from proto/ by the commands of deploy/docs/api.md, in Python and in Go:
# bash rings.sh INSTALL_DIR
# Needs Python 3.10 or newer with venv and PyPI, Go 1.26 or newer and the Go module proxy. About a minute on two cores.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need python3 "install Python 3.10 or newer"
need go "install Go 1.26 or newer from https://go.dev/dl"
proto=$(cd "$peers/../../proto" && pwd)
file=spanring/admin/v1/ring.proto
venv=$root/rings-venv
version=$(cat "$proto/$file" "$peers"/rings/* "${BASH_SOURCE[0]}" | sha256sum | cut -c1-12)

in_python() {
  # Made where it stays: a virtual environment can't be moved.
  rm -rf "$venv"
  python3 -m venv "$venv" >&2 || fail "python3 has no venv; on Debian: apt-get install python3-venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.3 grpcio-tools==1.85.1
  mkdir "$venv/client"
  (cd "$venv/client" && "$venv/bin/python" -m grpc_tools.protoc -I "$proto" --python_out=. --pyi_out=. --grpc_python_out=. "$file")
  cp "$peers/rings/rings.py" "$venv/client"
  # shellcheck disable=SC2016  # "$@" is the wrapper's own.
  printf '#!/bin/sh\nexec "%s/bin/python" "%s/client/rings.py" "$@"\n' "$venv" "$venv" >"$scratch/out"
}

in_go() {
  local module=$scratch/module
  mkdir "$module"
  cp "$peers"/rings/main.go "$peers"/rings/go.* "$module"
  GOBIN=$scratch go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
  GOBIN=$scratch go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
  (
    cd "$module"
    PATH=$scratch:$PATH "$venv/bin/python" -m grpc_tools.protoc -I "$proto" --go_out=. --go_opt=paths=source_relative \
      --go-grpc_out=. --go-grpc_opt=paths=source_relative "$file"
    rm -f "$scratch/out"
    nice go build -trimpath -ldflags '-s -w' -o "$scratch/out" .
  )
}

ensure rings-python "$version" in_python
ensure rings-go "$version" in_go
