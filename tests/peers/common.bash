# shellcheck shell=bash
# Sourced by the install scripts in this directory. Each is called as `bash NAME.sh INSTALL_DIR` and installs programs
# into INSTALL_DIR/bin. INSTALL_DIR/installed/PROGRAM holds the version, so that a program is not built again.
set -euo pipefail

peers=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${1:?"usage: bash $0 INSTALL_DIR"}
mkdir -p "$root/bin" "$root/installed"
root=$(cd "$root" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Do not let Go download another toolchain. Static Go binaries need no C compiler.
export GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS=-buildvcs=false

# fail MESSAGE...: prints what is missing and what to do about it, and ends the script.
fail() {
  echo "${0##*/}: $*" >&2
  exit 1
}

# need COMMAND HINT: fails unless a program exists that the script cannot install.
need() {
  command -v "$1" >/dev/null || fail "needs $1: $2"
}

# ensure PROGRAM VERSION RECIPE: runs RECIPE (a function that writes $scratch/out) unless this version is installed.
# Scripts that install the same program at the same time wait for each other.
ensure() {
  local program=$1 version=$2 recipe=$3
  (
    flock 8
    if [ -x "$root/bin/$program" ] && [ "$(cat "$root/installed/$program" 2>/dev/null)" = "$version" ]; then
      echo "$program $version: already installed"
      exit 0
    fi
    echo "$program $version: building"
    SECONDS=0
    "$recipe"
    # Rename it into place, so that a running program can be replaced.
    install -m 755 "$scratch/out" "$root/bin/.$program"
    mv -f "$root/bin/.$program" "$root/bin/$program"
    echo "$version" >"$root/installed/$program"
    echo "$program $version: built in $SECONDS s"
  ) 8>"$root/installed/.$program.lock"
}

# debian PACKAGE...: installs the Debian packages that are missing, without starting their services.
debian() {
  local package missing=() guard=/usr/sbin/policy-rc.d ours=
  for package in "$@"; do
    [ "$(dpkg-query -f '${db:Status-Status}' -W "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  need apt-get "${missing[*]} can be installed by this script on Debian or Ubuntu only; elsewhere put them in PATH"
  [ "$(id -u)" = 0 ] || fail "needs root to install ${missing[*]}; run: apt-get install ${missing[*]}"
  (
    flock 8
    # Debian starts a server when it is installed, unless this script forbids it.
    if [ ! -e "$guard" ]; then
      printf '#!/bin/sh\nexit 101\n' >"$guard"
      chmod 755 "$guard"
      ours=1
    fi
    export DEBIAN_FRONTEND=noninteractive
    status=0
    {
      apt-get -q update && apt-get -q -y --no-install-recommends install "${missing[@]}"
    } </dev/null >"$scratch/apt.log" 2>&1 || status=$?
    [ -z "$ours" ] || rm -f "$guard"
    if [ "$status" != 0 ]; then
      tail -n 20 "$scratch/apt.log" >&2
      fail "apt-get could not install ${missing[*]}"
    fi
  ) 8>"$root/installed/.apt.lock"
}
