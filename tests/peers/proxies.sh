#!/usr/bin/env bash
# Installs nginx and HAProxy, with which the end-to-end bench compares Spanring: bash proxies.sh INSTALL_DIR
# Uses the packages of Debian or Ubuntu. On other systems, install both programs yourself so that they are in PATH.
# shellcheck source=tests/peers/common.bash
. "$(dirname "${BASH_SOURCE[0]}")/common.bash"
export PATH=$PATH:/usr/sbin
if ! command -v nginx >/dev/null || ! command -v haproxy >/dev/null; then
  debian nginx haproxy
fi
for program in nginx haproxy; do
  ln -sf "$(command -v "$program")" "$root/bin/$program"
done
"$root/bin/nginx" -v 2>&1
"$root/bin/haproxy" -v | sed -n 1p
