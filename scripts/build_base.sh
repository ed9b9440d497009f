#!/usr/bin/env bash
# Makes a base image from Debian packages, without pulling an image and without running a program of its architecture:
# Python with pip, a shell, nft and what model runtimes link to. Usage: scripts/build_base.sh ARCHITECTURE NAME:TAG
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
architecture=$1 image=$2
if docker image inspect "$image" >/dev/null 2>&1; then
  exit 0
fi
echo "[base] unpacking Debian packages for $architecture"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# What the packages' scripts would have made; they do not run, so that no emulation is needed.
finish='set -eu
cp "$1/usr/share/base-passwd/passwd.master" "$1/etc/passwd"; cp "$1/usr/share/base-passwd/group.master" "$1/etc/group"
echo "hosts: files dns" > "$1/etc/nsswitch.conf"; ln -sf dash "$1/usr/bin/sh"
find "$1/usr/share/ca-certificates" -name "*.crt" | sort | xargs cat > "$1/etc/ssl/certs/ca-certificates.crt"
mkdir -p "$1/usr/lib/ssl"; ln -sf /etc/ssl/certs/ca-certificates.crt "$1/usr/lib/ssl/cert.pem"
rm -rf "$1/var/cache/apt" "$1/var/lib/apt"; mkdir -p "$1/tmp" "$1/proc" "$1/sys" "$1/run"; chmod 1777 "$1/tmp"'
packages=base-files,base-passwd,coreutils,dash,libc6,python3-minimal,libpython3-stdlib,python3-pip,ca-certificates
packages+=,libstdc++6,libgomp1,netbase,nftables,tzdata
SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --variant=extract --architectures="$architecture" --include="$packages" \
  --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' --extract-hook="$finish" bookworm "$work/base.tar"
.venv/bin/python scripts/load_rootfs.py "$work/base.tar" "$image" "$architecture"
