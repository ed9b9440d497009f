#!/usr/bin/env bash
# Builds Dockerfile.server on a base of Debian packages, without pulling an image, and starts it once.
set -euo pipefail
cd "$(dirname "$0")/.."
architecture=$(dpkg --print-architecture)
base=wherry-build-base-slim:$architecture
bash scripts/build_base.sh "$architecture" "$base"
bash scripts/wheels.sh "$(uname -m)" build/server-wheels requirements/server.txt
echo "[server] building wherry-server"
DOCKER_BUILDKIT=0 docker build -q -f Dockerfile.server --build-arg BASE_IMAGE="$base" --build-arg PIP_NO_INDEX=1 \
  -t wherry-server . 2>&1 | { grep -v -e '^DEPRECATED' -e '^ *BuildKit is' -e '^ *environment-variable' -e '^$' || true; }
docker run --rm --network none --read-only --cap-drop ALL wherry-server --version
docker run --rm --network none --read-only --cap-drop ALL --entrypoint python3.11 wherry-server \
  -c 'import wherry_server.api.application, wherry_server.dashboard.routes, wherry_server.link, wherry_server.schedule'
docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL -e WHERRY_HOST=localhost --entrypoint wherry-server-setup \
  wherry-server
