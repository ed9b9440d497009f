#!/usr/bin/env bash
# Builds both targets of Dockerfile.arm64 on this machine for 64-bit ARM, on a base made of Debian packages, without
# pulling an image, and tries them under qemu-user: `wherry-agent doctor`, and one inference over HTTP.
set -euo pipefail
cd "$(dirname "$0")/.."
base=wherry-build-base-slim:arm64
bash scripts/register_qemu.sh
bash scripts/build_base.sh arm64 "$base"
bash scripts/wheels.sh aarch64 build/wheels requirements/agent.txt requirements/serving-onnx.txt
for target in agent serving; do
  echo "[arm64] building wherry-$target:arm64"
  DOCKER_BUILDKIT=0 docker build -q --platform linux/arm64 -f Dockerfile.arm64 --target "$target" \
    --build-arg BASE_IMAGE="$base" --build-arg PIP_NO_INDEX=1 -t "wherry-$target:arm64" . 2>&1 |
    { grep -v -e '^DEPRECATED' -e '^ *BuildKit is' -e '^ *environment-variable' -e '^$' || true; }
done

echo "[arm64] wherry-agent doctor, in a container without an engine: it must say so, and what machine it is on"
status=0
said=$(docker run --rm --platform linux/arm64 --network none --read-only --tmpfs /run --tmpfs /var/lib/wherry \
  --cap-drop ALL wherry-agent:arm64 doctor 2>&1) || status=$?
printf '%s\n' "$said"
if [ "$status" != 1 ] || ! grep -q 'generic-arm64' <<<"$said" || ! grep -qi 'engine' <<<"$said"; then
  echo "[arm64] doctor ended with $status; expected 1, the profile's name and a word on the engine" >&2
  exit 1
fi
echo "[arm64] one inference in wherry-serving:arm64"
.venv/bin/python scripts/one_inference.py wherry-serving:arm64 linux/arm64
