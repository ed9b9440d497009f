#!/usr/bin/env bash
# Builds Dockerfile.jetson as far as it goes without NVIDIA's base image and wheel: on a base of Debian packages for
# 64-bit ARM, with a stand-in for the ONNX Runtime wheel. It proves the build's steps and checks, not that a GPU is used.
set -euo pipefail
cd "$(dirname "$0")/.."
base=wherry-build-base-slim:arm64
bash scripts/register_qemu.sh
bash scripts/build_base.sh arm64 "$base"
bash scripts/wheels.sh aarch64 build/wheels requirements/agent.txt requirements/serving-onnx.txt

build() { # TARGET ARGUMENT… ; says nothing unless it fails
  local target=$1 log
  shift
  log=$(mktemp)
  if DOCKER_BUILDKIT=0 docker build --platform linux/arm64 -f Dockerfile.jetson --target "$target" \
    --build-arg BASE_IMAGE="$base" --build-arg PIP_NO_INDEX=1 "$@" . >"$log" 2>&1; then
    rm "$log"
  else
    tail -n 12 "$log"
    rm "$log"
    return 1
  fi
}
label() { docker image inspect --format "{{index .Config.Labels \"io.wherry.$1\"}}" wherry-serving-jetson:stand-in; }

echo "[jetson] NOT NVIDIA's: the base is Debian $(docker run --rm --platform linux/arm64 "$base" cat /etc/debian_version), ONNX Runtime is a stand-in. No GPU code runs here."
echo "[jetson] building the agent, and running it"
build agent --build-arg L4T=36 -t wherry-agent-jetson:stand-in
docker run --rm --platform linux/arm64 --network none wherry-agent-jetson:stand-in --version

echo "[jetson] building serving with a wheel that has no code for sm_87: this must fail"
rm -rf build/ort
read -r wheel hash < <(.venv/bin/python scripts/stand_in_ort.py build/ort 89,90,120,121)
if said=$(build serving --build-arg ORT_WHEEL="$wheel" --build-arg ORT_SHA256="$hash" --build-arg SM=87); then
  echo "[jetson] it was built all the same" >&2
  exit 1
fi
grep -om1 'check-gpu-code: .*' <<<"$said"

echo "[jetson] building serving with a wheel that has it"
read -r wheel hash < <(.venv/bin/python scripts/stand_in_ort.py build/ort 72,87)
build serving --build-arg ORT_WHEEL="$wheel" --build-arg ORT_SHA256="$hash" --build-arg L4T=36 --build-arg SM=87 \
  --build-arg CUDA=12 -t wherry-serving-jetson:stand-in
echo "[jetson] labels: l4t=$(label l4t) sm=$(label sm) cuda=$(label cuda) provider=$(label provider)"
[ "$(label l4t) $(label sm) $(label cuda) $(label provider)" = "36 87 12 CUDAExecutionProvider" ]
rm -rf build/ort
echo "[jetson] with NVIDIA's base and wheel the same command makes the image for a board; that was not done here."
