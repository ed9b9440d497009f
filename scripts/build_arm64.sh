#!/usr/bin/env bash
# Builds Dockerfile.arm64 on this machine for 64-bit ARM, on a base made of Debian packages, without pulling an image,
# and runs `wherry-agent --version` in it under qemu-user.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
base=wherry-build-base:arm64
image=wherry-agent:arm64
bash scripts/register_qemu.sh

if ! docker image inspect "$base" >/dev/null 2>&1; then
  echo "[arm64] building a base from Debian packages"
  mkdir -p build/cache
  mmdebstrap --quiet --variant=minbase --architectures=arm64 \
    --include=python3-minimal,libpython3-stdlib,python3-pip,ca-certificates,libstdc++6,libgomp1,nftables \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' bookworm build/cache/arm64-build-base.tar
  .venv/bin/python scripts/load_rootfs.py build/cache/arm64-build-base.tar "$base" arm64
  rm build/cache/arm64-build-base.tar
fi

echo "[arm64] collecting wheels for aarch64"
rm -rf build/wheels && mkdir -p build/wheels
platforms=()
for tag in manylinux_2_36 manylinux_2_35 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_26 \
  manylinux_2_24 manylinux_2_17 manylinux2014; do
  platforms+=(--platform "${tag}_aarch64")
done
.venv/bin/python -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
  --python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none "${platforms[@]}" \
  -r requirements/agent.txt -d build/wheels 2>&1 | { grep -v '^WARNING: Location' || true; }

echo "[arm64] building $image"
DOCKER_BUILDKIT=0 docker build -q --platform linux/arm64 -f Dockerfile.arm64 --target agent \
  --build-arg BASE_IMAGE="$base" --build-arg PIP_NO_INDEX=1 -t "$image" .
docker run --rm --platform linux/arm64 --network none "$image" --version
