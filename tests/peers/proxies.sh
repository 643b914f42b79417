#!/usr/bin/env bash
# Installs nginx and HAProxy, which the end-to-end bench measures beside Spanring: bash proxies.sh INSTALL_DIR
# Debian's packages (Ubuntu's do too); on another system put both programs in PATH instead.
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
