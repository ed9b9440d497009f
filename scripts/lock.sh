#!/usr/bin/env bash
# Writes requirements/*.txt from pyproject.toml: pinned, with hashes, without addresses. Needs `make setup` once.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$@"
}
for extra in dev agent server; do
  compile pyproject.toml --extra "$extra" --output-file "requirements/$extra.txt"
done
for runtime in onnx litert tflite; do
  compile pyproject.toml --extra serving --extra "$runtime" --output-file "requirements/serving-$runtime.txt"
done
echo "pillow>=11" | compile - --output-file requirements/serving-picture.txt
echo uv | compile - --output-file requirements/tools.txt
printf 'mlserver\nonnxruntime\n' | compile - --output-file requirements/bench-mlserver.txt
