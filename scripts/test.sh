#!/usr/bin/env bash
# All tests, in two processes side by side: rooms that wait for engines and brokers beside rooms that compute.
set -uo pipefail
cd "$(dirname "$0")/.."
waiting=(tests/agent tests/bench tests/edge tests/end_to_end tests/faults)
computing=()
for room in tests/*/; do
  [[ " ${waiting[*]} " == *" ${room%/} "* || $room == */__pycache__/ ]] || computing+=("${room%/}")
done
mkdir -p build
.venv/bin/python -m pytest "${computing[@]}" >build/tests.log 2>&1 &
other=$!
trap 'kill "$other" 2>/dev/null' EXIT
.venv/bin/python -m pytest "${waiting[@]}"
status=$?
wait "$other" || status=1
cat build/tests.log
exit "$status"
