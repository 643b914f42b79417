#!/usr/bin/env bash
# Installs a program that sends traces with the OpenTelemetry SDK for Python, from sdk/: bash sdk.sh INSTALL_DIR
# Needs Python 3.10 or newer with venv, and PyPI. Takes about twenty seconds.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need python3 "install Python 3.10 or newer"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "needs Python 3.10 or newer"

build() {
  # Create it at its final path: a virtual environment cannot be moved.
  rm -rf "$root/sdk-python"
  python3 -m venv "$root/sdk-python" >&2 || fail "python3 has no venv; on Debian: apt-get install python3-venv"
  "$root/sdk-python/bin/pip" install --quiet --disable-pip-version-check --requirement "$peers/sdk/requirements.txt"
  cp "$peers/sdk/send.py" "$root/sdk-python"
  # shellcheck disable=SC2016  # "$@" is the wrapper's own.
  printf '#!/bin/sh\nexec "%s/bin/python" "%s/send.py" "$@"\n' "$root/sdk-python" "$root/sdk-python" >"$scratch/out"
}

version=$(sed -n 's/^opentelemetry-sdk==//p' "$peers/sdk/requirements.txt")
ensure sdk-python "$version-$(cat "$peers"/sdk/* | sha256sum | cut -c1-12)" build
