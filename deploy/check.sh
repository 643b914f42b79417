#!/usr/bin/env bash
# Checks everything in this directory that can be checked without a cluster and without containers: bash deploy/check.sh
#
# Needs openssl, the tools that tests/peers/k8s-tools.sh installs into $SPANRING_PEERS (default
# ~/.cache/spanring-tools), and Spanring itself ($SPANRING_BIN, default target/release/spanring), which validates every
# configuration for it. If a Collector is installed (collector.sh), it validates the files for collectors. The systemd
# unit is only checked where systemd exists.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
peers=${SPANRING_PEERS:-$HOME/.cache/spanring-tools}
spanring=$(realpath "${SPANRING_BIN:-target/release/spanring}")
schemas=$peers/schemas
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failures=0 checks=0

# check WHAT COMMAND...: runs a check and prints its output if it fails.
check() {
  local what=$1
  shift
  checks=$((checks + 1))
  if "$@" >"$scratch/log" 2>&1; then
    printf 'ok      %s\n' "$what"
  else
    printf 'FAILED  %s: %s\n' "$what" "$*"
    sed 's/^/        /' "$scratch/log"
    failures=$((failures + 1))
  fi
}

skip() {
  printf 'skipped %s: %s\n' "$1" "$2"
}

# conforms FILE: validates manifests against the oldest supported Kubernetes version and a recent one.
conforms() {
  local version
  for version in v1.30.0 v1.37.0; do
    "$peers/bin/kubeconform" -strict -summary \
      -schema-location "$schemas/$version/{{.ResourceKind}}{{.KindSuffix}}.json" \
      -schema-location "$schemas/crds/{{.ResourceKind}}{{.KindSuffix}}.json" "$1"
  done
}

# files MANIFESTS: extracts the configuration files from the ConfigMaps into $scratch/files.
files() {
  rm -rf "$scratch/files"
  mkdir "$scratch/files"
  awk -v dir="$scratch/files" '
    /^  [a-z]+\.yaml: \|/ { out = dir "/" substr($1, 1, length($1) - 1); next }
    /^    |^$/ { if (out) print substr($0, 5) >out; next }
    { out = "" }
  ' "$1"
}

# arguments MANIFESTS: prints the arguments of Spanring's container after `run`, one per line.
arguments() {
  awk '
    /^ *args: \[run, / { sub(/^ *args: \[run, /, ""); sub(/\]$/, ""); gsub(/, /, "\n"); print; exit }
    /^ *(- )?args:$/ { first = 1; next }
    first { if ($0 !~ /^ *- run$/) { first = 0; next } first = 0; ours = 1; next }
    ours { if ($1 != "-") exit; sub(/^ *- /, ""); print }
  ' "$1"
}

# understood NAME MANIFESTS: lets each program validate its configuration file, and Spanring its command line.
understood() {
  local name=$1 file over=() line
  files "$2"
  for file in "$scratch"/files/*.yaml; do
    sed -i "s#/etc/\(spanring\|otelcol\)-tls/#$scratch/tls/#" "$file"
  done
  mapfile -t line < <(arguments "$2" | sed "s#/etc/spanring/#$scratch/files/#")
  check "$name: Spanring takes its command line and file" "$spanring" validate "${line[@]}"
  if [ -x "$peers/bin/otelcol" ] && [ -e "$scratch/files/collector.yaml" ]; then
    [ ! -e "$scratch/files/tls.yaml" ] || over=(--config "$scratch/files/tls.yaml")
    check "$name: a Collector takes its file" \
      "$peers/bin/otelcol" validate --config "$scratch/files/collector.yaml" "${over[@]}"
  fi
}

# Stand-ins for the contents of Secrets: a configuration is only valid if its certificates can be read.
certificates() {
  local folder
  mkdir -p "$scratch"/tls/{receiver,pool}
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=spanring \
    -addext subjectAltName=DNS:spanring -keyout "$scratch/tls/tls.key" -out "$scratch/tls/tls.crt" 2>"$scratch/log" ||
    { cat "$scratch/log" && return 1; }
  cp "$scratch/tls/tls.crt" "$scratch/tls/ca.crt"
  for folder in receiver pool; do
    cp "$scratch"/tls/*.* "$scratch/tls/$folder"
  done
}

# drains MANIFESTS: prints how each pod ends, and fails if a collector serves for less than 45 s, if its Service lists pods
# that are not ready, or if a pod is killed before it is through (shutdown.delay and shutdown.timeout are 5 s and 25 s, a
# collector has 30 s to decide and to send). deploy/docs/operations.md has the reasons.
drains() {
  awk '
    function end_of_object() {
      if (kind ~ /^(Deployment|DaemonSet|StatefulSet)$/ && grace) {
        rest = 30
        least = is_collector ? 45 : 5
        bad = sleep < least || grace < sleep + rest
        printf "%s %s serves for %d s, grace period %d s%s\n", kind, name, sleep, grace, bad ? ": TOO SHORT" : ""
        failed += bad
      }
      if (kind == "Service" && is_collector && not_ready != "false") {
        printf "Service %s: publishNotReadyAddresses must be false\n", name
        failed++
      }
      kind = name = not_ready = ""
      sleep = grace = is_collector = in_sleep = 0
    }
    /^---/ { end_of_object(); next }
    /^kind: / { kind = $2 }
    /^  name: / && !name { name = $2 }
    /app.kubernetes.io\/component: collector/ { is_collector = 1 }
    /publishNotReadyAddresses:/ { not_ready = $2 }
    /terminationGracePeriodSeconds:/ { grace = $2 }
    /^ *sleep:/ { in_sleep = 1 }
    in_sleep && match($0, /seconds: *[0-9]+/) { sleep = substr($0, RSTART + 8, RLENGTH - 8) + 0; in_sleep = 0 }
    END { end_of_object(); exit failed > 0 }
  ' "$1" && grep -q terminationGracePeriodSeconds "$1"
}

chart=deploy/helm/spanring
image=image.repository=registry.example.com/spanring
rendered() {
  "$peers/bin/helm" template spanring "$chart" --namespace observability --set "$image" "$@"
}

# variant NAME VALUES...: checks the chart with these values.
variant() {
  local name="chart, $1" out=$scratch/chart.yaml
  shift
  check "$name: lint" "$peers/bin/helm" lint --strict --quiet "$chart" --set "$image" "$@"
  if rendered "$@" >"$out"; then
    check "$name: template | kubeconform" conforms "$out"
    check "$name: collectors serve for 45 s after they left discovery, and no pod is killed early" drains "$out"
    understood "$name" "$out"
  else
    failures=$((failures + 1))
  fi
}

charts() {
  variant default
  variant sidecar --set mode=sidecar
  variant 'OTLP/gRPC only' --set otlpHttp.enabled=false
  variant daemonset --set mode=daemonset,daemonset.hostPort=true
  variant TLS -f deploy/helm/tls-values.yaml
  variant monitoring --set monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true
  variant 'long decisions' --set collectors.decisionWaitSeconds=30
  variant 'other collectors' --set collectors.enabled=false,pool.hostname=collectors.example,autoscaling.enabled=false,watchConfig=
  variant 'OTLP/HTTP to collectors' --set-json 'pool.protocol={"otlp_http":{}}'
  check 'chart, OTLP/HTTP to collectors: all sides say so' speaks_http
  variant 'OTLP/HTTP to collectors, with TLS' -f deploy/helm/tls-values.yaml --set pool.protocol.otlp_http.max_conns_per_host=8
  variant 'EndpointSlices' --set pool.resolver=k8s
  variant 'EndpointSlices of another namespace' --set collectors.enabled=false,pool.resolver=k8s,pool.service=collectors.elsewhere
  check 'chart: without an image it says how to make one' asks_for_an_image
  check 'chart: wrong values are refused' refused --set mode=deploymnet
  check 'chart: unknown values are refused' refused --set autoscalling.enabled=false
  check 'chart: no backends are refused' refused --set collectors.enabled=false
  check 'chart: the other resolver'\''s name is refused' refused --set pool.resolver=k8s,pool.hostname=collectors.example
  check 'chart: client certificates without a certificate are refused' refused --set tls.receiver.clientCertificates=true
}

# The pool, the collectors' receiver and Service, and both NetworkPolicies have to name the same port. The pool's own variant
# rendered the manifests.
speaks_http() {
  local line
  for line in '          otlp_http: {}' '            port: 4318' \
    '    - { name: otlp-http, port: 4318, targetPort: otlp-http, protocol: TCP }' \
    '            - { name: otlp-http, containerPort: 4318, protocol: TCP }' '      ports: [{ port: 4318 }]' \
    '      ports: [{ port: otlp-http }]'; do
    grep -qF -- "$line" "$scratch/chart.yaml" || { printf 'missing: %s\n' "$line" && return 1; }
  done
  # Spanring's own receiver and the collectors'.
  [ "$(grep -c 'endpoint: 0.0.0.0:4318' "$scratch/chart.yaml")" = 2 ] && [ "$(grep -c 'endpoint: 0.0.0.0:4317' "$scratch/chart.yaml")" = 1 ]
}

refused() {
  ! rendered "$@"
}

asks_for_an_image() {
  rendered --set image.repository= >"$scratch/said" 2>&1 && return 1
  cat "$scratch/said"
  grep -q 'docker build -f deploy/Dockerfile -t REGISTRY/spanring:.*--set image.repository=REGISTRY/spanring' "$scratch/said"
}

overlays() {
  local folder out
  for folder in deploy/kubernetes/base deploy/kubernetes/overlays/*; do
    out=$scratch/${folder##*/}.yaml
    if "$peers/bin/kustomize" build "$folder" >"$out"; then
      check "${folder#deploy/}: build | kubeconform" conforms "$out"
      check "${folder#deploy/}: collectors serve for 45 s after they left discovery, and no pod is killed early" drains "$out"
      understood "${folder#deploy/}" "$out"
    else
      failures=$((failures + 1))
    fi
  done
}

# The object of the Prometheus operator has the same rules as the file for Prometheus.
same_rules() {
  diff <(sed '1,/^spec:/d' deploy/kubernetes/overlays/monitoring/prometheusrule.yaml) \
    <(sed 's/^\(.\)/  \1/' deploy/prometheus/spanring.rules.yaml)
}

unit() {
  sed "s#/usr/local/bin/spanring#$spanring#" deploy/systemd/spanring.service >"$scratch/spanring.service"
  check 'systemd: verify' systemd-analyze verify --man=no "$scratch/spanring.service"
  # At most 1.5 of 10, which means hardly any permissions. (systemd before 250 has no --offline.)
  check 'systemd: exposure at most 1.5' \
    systemd-analyze security --offline=true --threshold=15 --no-pager "$scratch/spanring.service"
}

certificates
charts
overlays
check 'kubernetes/overlays/monitoring: the rules of deploy/prometheus' same_rules
check 'Dockerfile: hadolint' "$peers/bin/hadolint" deploy/Dockerfile
check 'Compose: its own loader takes it' "$peers/bin/compose-config" deploy/compose.yaml
check 'Compose: Spanring takes its file' "$spanring" validate --config deploy/compose/spanring.yaml
if command -v systemd-analyze >/dev/null; then unit; else skip systemd 'no systemd-analyze here'; fi
printf '%s checks, %s failed\n' "$checks" "$failures"
[ "$failures" = 0 ]
