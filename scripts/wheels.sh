#!/usr/bin/env bash
# Puts the wheels of lock files into a folder, so that an image build needs no network.
# Usage: scripts/wheels.sh MACHINE FOLDER LOCK…, for example scripts/wheels.sh aarch64 build/wheels requirements/agent.txt
set -euo pipefail
cd "$(dirname "$0")/.."
machine=$1 folder=$2
shift 2
want=$(cat scripts/wheels.sh "$@" | sha256sum)
if [ "$(cat "$folder.sha256" 2>/dev/null)" = "$want" ]; then
  exit 0
fi
rm -rf "$folder" "$folder.sha256" && mkdir -p "$folder"
echo "[wheels] collecting wheels for $machine"
platforms=()
for tag in manylinux_2_36 manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_26 \
  manylinux_2_24 manylinux_2_17 manylinux2014; do
  platforms+=(--platform "${tag}_$machine")
done
for lock in "$@"; do
  .venv/bin/python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
    --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none "${platforms[@]}" \
    -r "$lock" -d "$folder" 2>&1 | { grep -v '^WARNING: Location' || true; }
done
echo "$want" >"$folder.sha256"
