#!/usr/bin/env bash
# Installs programs that send traces with OpenTelemetry SDKs, from sdk/: bash sdk.sh INSTALL_DIR [LANGUAGE...]
#   sdk-python   needs Python 3.10 or newer with venv, and PyPI
#   sdk-node     needs Node 20 or newer with npm, and npm's registry
#   sdk-go       needs Go 1.26 or newer and the Go module proxy
#   sdk-java     needs a JDK 17 or newer with Maven, and Maven Central
# Without a language it installs those whose programs are here. Each takes less than a minute on two cores.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
shift

# version FILE PREFIX: prints what follows PREFIX at the beginning of a line, up to a quote or a tag.
version() {
  sed -n "s|^[[:space:]]*$2\([0-9.]*\).*|\1|p" "$peers/sdk/$1" | head -n 1
}

# sdk LANGUAGE VERSION: installs sdk-LANGUAGE by the function for_LANGUAGE. A change of its folder installs it again.
sdk() {
  ensure "sdk-$1" "$2-$(find "$peers/sdk/$1" -type f | LC_ALL=C sort | xargs cat | sha256sum | cut -c1-12)" "for_$1"
}

# wrapper COMMAND: writes a script that runs COMMAND with its own arguments. Programs stay where they were made, since a
# virtual environment cannot be moved.
wrapper() {
  # shellcheck disable=SC2016  # "$@" is the wrapper's own.
  printf '#!/bin/sh\nexec %s "$@"\n' "$1" >"$scratch/out"
}

for_python() {
  need python3 "install Python 3.10 or newer"
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "needs Python 3.10 or newer"
  rm -rf "$root/sdk-python"
  python3 -m venv "$root/sdk-python" >&2 || fail "python3 has no venv; on Debian: apt-get install python3-venv"
  "$root/sdk-python/bin/pip" install --quiet --disable-pip-version-check --requirement "$peers/sdk/python/requirements.txt"
  cp "$peers/sdk/python/send.py" "$root/sdk-python"
  wrapper "'$root/sdk-python/bin/python' '$root/sdk-python/send.py'"
}

for_node() {
  need npm "install Node 20 or newer with npm"
  rm -rf "$root/sdk-node"
  cp -r "$peers/sdk/node" "$root/sdk-node"
  (cd "$root/sdk-node" && nice npm ci --prefer-offline --silent --no-audit --no-fund --ignore-scripts)
  wrapper "node '$root/sdk-node/send.mjs'"
}

for_go() {
  need go "install Go 1.26 or newer from https://go.dev/dl"
  rm -f "$scratch/out"
  (cd "$peers/sdk/go" && nice go build -trimpath -ldflags '-s -w' -o "$scratch/out" .)
}

for_java() {
  need mvn "on Debian: apt-get install maven default-jdk-headless"
  need javac "on Debian: apt-get install default-jdk-headless"
  rm -rf "$root/sdk-java"
  mkdir "$root/sdk-java"
  # Compiled by javac itself: Maven would need three more plugins.
  nice mvn -q -B -f "$peers/sdk/java/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.6.0:copy-dependencies \
    -DincludeScope=runtime "-DoutputDirectory=$root/sdk-java"
  nice javac -encoding UTF-8 --release 17 -cp "$root/sdk-java/*" -d "$root/sdk-java" "$peers/sdk/java/Send.java"
  # It runs for seconds, so the optimising compiler would not pay.
  wrapper "java -XX:TieredStopAtLevel=1 -Dfile.encoding=UTF-8 -cp '$root/sdk-java:$root/sdk-java/*' Send"
}

languages=("$@")
if [ ${#languages[@]} -eq 0 ]; then
  for pair in python:python3 node:npm go:go java:mvn; do
    if command -v "${pair#*:}" >/dev/null; then
      languages+=("${pair%:*}")
    else
      echo "sdk-${pair%:*}: not installed, since ${pair#*:} is missing"
    fi
  done
fi
for language in "${languages[@]}"; do
  case $language in
  python) sdk python "$(version python/requirements.txt opentelemetry-sdk==)" ;;
  node) sdk node "$(version node/package.json '"@opentelemetry/sdk-trace-base": "')" ;;
  go) sdk go "$(version go/go.mod 'go.opentelemetry.io/otel/sdk v')" ;;
  java) sdk java "$(version java/pom.xml '<otel.version>')" ;;
  *) fail "no SDK for $language here" ;;
  esac
done
