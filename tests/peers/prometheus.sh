#!/usr/bin/env bash
# Installs Prometheus and promtool, which scrape replicas, evaluate the rules of deploy/ and check the metrics page:
# bash prometheus.sh INSTALL_DIR
# Uses the packages of Debian or Ubuntu. On other systems, install both programs yourself so that they are in PATH.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
if ! command -v prometheus >/dev/null || ! command -v promtool >/dev/null; then
  debian prometheus
fi
for program in prometheus promtool; do
  ln -sf "$(command -v "$program")" "$root/bin/$program"
  "$root/bin/$program" --version 2>&1 | sed -n 1p
done
