#!/usr/bin/env bash
# Installs a Kubernetes API server with its store and its client: bash kubernetes.sh INSTALL_DIR
#   kube-apiserver, etcd, kubectl   built from Go modules; 8 minutes on two cores, 2 GB of memory, 3 GB of disk meanwhile
# Needs Go 1.26 or newer and the Go module proxy. There are no controllers and no kubelet: tests write EndpointSlices
# themselves.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
need go "install Go 1.26 or newer from https://go.dev/dl"

kubernetes=1.36.3 etcd=3.6.8
# Kubernetes' own go.mod replaces these modules by folders of its repository, and so names no version of them.
staging=(api apiextensions-apiserver apimachinery apiserver cli-runtime client-go cloud-provider cluster-bootstrap
  code-generator component-base component-helpers controller-manager cri-api cri-client cri-streaming
  csi-translation-lib dynamic-resource-allocation endpointslice externaljwt kms kube-aggregator
  kube-controller-manager kube-proxy kube-scheduler kubectl kubelet metrics mount-utils pod-security-admission
  sample-apiserver streaming)

# Nothing else uses these modules and objects, which are larger than the programs: they go with $scratch.
export GOCACHE=$scratch/objects GOMODCACHE=$scratch/modules GOFLAGS='-buildvcs=false -mod=mod -modcacherw'

# module: makes the module that the programs are built in, once.
module() {
  [ ! -e "$scratch/module/go.mod" ] || return 0
  mkdir -p "$scratch/module"
  (
    cd "$scratch/module"
    local name requirements=("-require=k8s.io/kubernetes@v$kubernetes" "-require=go.etcd.io/etcd/server/v3@v$etcd")
    for name in "${staging[@]}"; do
      requirements+=("-require=k8s.io/$name@v0.${kubernetes#1.}")
    done
    go mod init peers/kubernetes 2>/dev/null
    go mod edit "${requirements[@]}"
  )
}

# go_main BODY IMPORT...: builds a program whose main function is BODY into $scratch/out.
go_main() {
  local body=$1 version=k8s.io/component-base/version minor=${kubernetes#1.}
  shift
  module
  mkdir -p "$scratch/module/program"
  {
    printf 'package main\n\nimport (\n'
    printf '\t%s\n' "$@"
    printf ')\n\nfunc main() { %s }\n' "$body"
  } >"$scratch/module/program/main.go"
  (
    cd "$scratch/module"
    nice go build -trimpath -o "$scratch/out" \
      -ldflags "-s -w -X $version.gitVersion=v$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=${minor%.*}" ./program
  )
}

apiserver() {
  go_main 'os.Exit(cli.Run(app.NewAPIServerCommand()))' '"os"' '"k8s.io/component-base/cli"' \
    '_ "k8s.io/component-base/metrics/prometheus/clientgo"' '"k8s.io/kubernetes/cmd/kube-apiserver/app"'
}
kubectl() {
  go_main 'os.Exit(cli.Run(cmd.NewDefaultKubectlCommand()))' '"os"' '"k8s.io/component-base/cli"' '"k8s.io/kubectl/pkg/cmd"'
}
store() {
  go_main 'etcdmain.Main(os.Args)' '"os"' '"go.etcd.io/etcd/server/v3/etcdmain"'
}

ensure kube-apiserver "$kubernetes" apiserver
ensure kubectl "$kubernetes" kubectl
ensure etcd "$etcd" store
