#!/usr/bin/env bash
# Puts the wheels of lock files for 64-bit ARM into build/wheels/, so that an image build needs no network.
# Usage: scripts/wheels.sh LOCK…
set -euo pipefail
cd "$(dirname "$0")/.."
want=$(cat scripts/wheels.sh "$@" | sha256sum)
if [ "$(cat build/wheels.sha256 2>/dev/null)" = "$want" ]; then
  exit 0
fi
rm -rf build/wheels build/wheels.sha256 && mkdir -p build/wheels
echo "[wheels] collecting wheels for aarch64"
platforms=()
for tag in manylinux_2_36 manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_26 \
  manylinux_2_24 manylinux_2_17 manylinux2014; do
  platforms+=(--platform "${tag}_aarch64")
done
for lock in "$@"; do
  .venv/bin/python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none "${platforms[@]}" \
    -r "$lock" -d build/wheels 2>&1 | { grep -v '^WARNING: Location' || true; }
done
echo "$want" >build/wheels.sha256
