#!/usr/bin/env bash
# Validates the manifests with a real API server, in a namespace with the restricted Pod Security Standard: bash
# deploy/dry-run.sh
#
# Needs the programs that tests/peers/kubernetes.sh installs into $SPANRING_PEERS (default ~/.cache/spanring-tools), besides
# the tools of tests/peers/k8s-tools.sh; without them it prints that it is skipped. Nothing is applied (--dry-run=server), and
# warnings count as failures. The servers listen on free ports of the loopback interface.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${SPANRING_PEERS:-$HOME/.cache/spanring-tools}/bin
for program in etcd kube-apiserver kubectl kustomize helm; do
  if [ ! -x "$bin/$program" ]; then
    echo "dry run: skipped: no $program in $bin"
    exit 0
  fi
done

run=$(mktemp -d)
stop() {
  # Stop the API server first, since it logs errors when its store is gone.
  for process in ${apiserver:-} ${etcd:-}; do
    kill "$process" 2>/dev/null || true
    wait "$process" 2>/dev/null || true
  done
  rm -rf "$run"
}
trap stop EXIT

read -r client peer secure < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(3)]
for one in sockets: one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))')
token=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
echo "$token,admin,admin,system:masters" >"$run/tokens.csv"
openssl genrsa -out "$run/accounts.key" 2048 2>/dev/null

"$bin/etcd" --data-dir "$run/etcd" --unsafe-no-fsync --log-level warn \
  --listen-client-urls "http://127.0.0.1:$client" --advertise-client-urls "http://127.0.0.1:$client" \
  --listen-peer-urls "http://127.0.0.1:$peer" --initial-advertise-peer-urls "http://127.0.0.1:$peer" \
  --initial-cluster "default=http://127.0.0.1:$peer" >"$run/etcd.log" 2>&1 &
etcd=$!
"$bin/kube-apiserver" --etcd-servers "http://127.0.0.1:$client" --bind-address 127.0.0.1 --advertise-address 127.0.0.1 \
  --secure-port "$secure" --cert-dir "$run/certs" --service-cluster-ip-range 10.96.0.0/16 \
  --service-account-issuer https://kubernetes.default.svc --service-account-key-file "$run/accounts.key" \
  --service-account-signing-key-file "$run/accounts.key" --token-auth-file "$run/tokens.csv" \
  --authorization-mode RBAC --disable-admission-plugins ServiceAccount --endpoint-reconciler-type none \
  >"$run/apiserver.log" 2>&1 &
apiserver=$!

kubectl() {
  "$bin/kubectl" --server "https://127.0.0.1:$secure" --token "$token" \
    --certificate-authority "$run/certs/apiserver.crt" --cache-dir "$run/cache" "$@"
}

for _ in $(seq 300); do
  [ "$(kubectl get --raw /readyz 2>/dev/null)" != ok ] || break
  kill -0 "$apiserver" 2>/dev/null || break
  sleep 0.2
done
if [ "$(kubectl get --raw /readyz 2>/dev/null)" != ok ]; then
  tail -n 20 "$run/apiserver.log" "$run/etcd.log"
  exit 1
fi

kubectl create namespace observability >/dev/null
kubectl label namespace observability pod-security.kubernetes.io/{enforce,warn}=restricted >/dev/null
crds=$(dirname "$bin")/schemas/crds
for crd in monitoring.coreos.com_{servicemonitors,prometheusrules} cert-manager.io_{certificates,issuers}; do
  kubectl create -f "$crds/$crd.yaml" >/dev/null
done
kubectl wait --for condition=established --timeout 30s crd --all >/dev/null

failures=0
# judged NAME: checks the manifests on stdin.
judged() {
  cat >"$run/manifests.yaml"
  if kubectl apply --namespace observability --dry-run=server -f "$run/manifests.yaml" >"$run/log" 2>&1 &&
    ! grep -q '^Warning' "$run/log"; then
    printf 'ok      %s: %s objects\n' "$1" "$(wc -l <"$run/log")"
  else
    printf 'FAILED  %s\n' "$1"
    sed 's/^/        /' "$run/log"
    failures=$((failures + 1))
  fi
}

chart() {
  local name=$1
  shift
  "$bin/helm" template spanring deploy/helm/spanring --namespace observability \
    --set image.repository=registry.example.com/spanring "$@" | judged "chart, $name"
}

for folder in deploy/kubernetes/base deploy/kubernetes/overlays/*; do
  "$bin/kustomize" build "$folder" | judged "${folder#deploy/}"
done
chart default --set monitoring.serviceMonitor.enabled=true,monitoring.prometheusRule.enabled=true
chart daemonset --set mode=daemonset
chart sidecar --set mode=sidecar
chart EndpointSlices --set pool.resolver=k8s
chart TLS -f deploy/helm/tls-values.yaml
[ "$failures" = 0 ]
