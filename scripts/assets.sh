#!/usr/bin/env bash
# Copies what the dashboard loads in a browser (htmx, idiomorph, uPlot) from npm's packages, pinned by
# server/dashboard-assets/package-lock.json, to where the server and the wheel take it from. Nothing of it is
# committed and nothing is fetched at run time.
set -euo pipefail
cd "$(dirname "$0")/.."
source=server/dashboard-assets
target=server/wherry_server/dashboard/static/vendor
say() { printf '\033[1m[assets]\033[0m %s\n' "$*"; }

stamp=$target/.lock-sha256
want=$(cat "$source/package-lock.json" scripts/assets.sh | sha256sum | cut -d' ' -f1)
[ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && [ -d "$source/node_modules" ] && exit 0
if ! command -v npm >/dev/null; then
  say "npm is not installed, so the dashboard has no live updates and no charts. Install it and run \`make assets\`." >&2
  exit 1
fi

say "fetching the dashboard's scripts (pinned, with hashes) …"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! npm ci --prefix "$source" --ignore-scripts --no-audit --no-fund >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  say "npm could not fetch them. Read the lines above, mend it and run \`make assets\` again." >&2
  exit 1
fi
rm -rf "$target"
mkdir -p "$target"
modules=$source/node_modules
cp "$modules/htmx.org/dist/htmx.min.js" "$modules/idiomorph/dist/idiomorph-ext.min.js" \
  "$modules/uplot/dist/uPlot.iife.min.js" "$modules/uplot/dist/uPlot.min.css" "$target/"
cp "$modules/htmx.org/LICENSE" "$target/LICENSE.htmx"
cp "$modules/idiomorph/LICENSE" "$target/LICENSE.idiomorph"
cp "$modules/uplot/LICENSE" "$target/LICENSE.uplot"
echo "$want" >"$stamp"
