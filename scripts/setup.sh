#!/usr/bin/env bash
# Makes this machine able to run Wherry's demo or tests. Installs what is missing, says what and why, and
# leaves alone what already runs. Usage: scripts/setup.sh demo|test
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-test}
SUDO=""
[ "$(id -u)" = 0 ] || SUDO=sudo
say() { printf '\033[1m[setup]\033[0m %s\n' "$*"; }
if [ -n "$SUDO" ] && ! command -v sudo >/dev/null; then
  say "needs root or sudo to install packages and to use the Docker engine. Run it as root, or install sudo." >&2
  exit 1
fi
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  say "needs Python 3.11 or newer, found $(python3 --version 2>&1). Install it and run the command again." >&2
  exit 1
fi

# command (or file) · Debian package · why we need it
needs() {
  cat <<'LIST'
dockerd docker.io the container engine that runs the models
iptables iptables the engine's own networking
apparmor_parser apparmor the engine confines containers with it where the kernel has it
nft nftables the agent switches a slot's port with it
haproxy haproxy leads callers to images that cannot drain, and lets them wait while versions change
mosquitto mosquitto the MQTT broker of the control channel
docker-registry docker-registry the OCI registry that holds the images
mmdebstrap mmdebstrap builds the images' base layer from Debian packages
npm npm fetches the scripts that the dashboard loads in a browser
LIST
  [ "$what" = demo ] || cat <<'LIST'
/usr/bin/qemu-aarch64-static qemu-user-static runs arm64 images on this machine, for tests
/usr/lib/postgresql postgresql the other database that the server supports, for tests
arch-test arch-test lets mmdebstrap build for another architecture, for tests
systemd-analyze systemd reads the services' units as systemd would, for tests
shellcheck shellcheck reads install.sh, for tests
ip iproute2 gives the fault sweep a network of its own, for tests
strace strace kills the agent at a chosen system call, for the fault sweep
/usr/share/doc/libfaketime libfaketime sets the agent's clock, for the fault sweep
curl curl fetches install.sh as its users do, for tests
/bin/busybox busybox-static the smallest container image, for tests
promtool prometheus checks and tries the alert rules, for tests
docker-compose docker-compose checks deploy/compose.yaml, for tests
/usr/bin/chromium chromium opens the dashboard's pages, for tests
LIST
}

missing=()
while read -r probe package why; do
  case "$probe" in
    /*) [ -e "$probe" ] && continue ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$probe" >/dev/null && continue ;;
  esac
  say "needs $package: $why"
  missing+=("$package")
done < <(needs)
if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
  say "needs python3-venv: keeps Wherry's Python packages apart from the system's"
  missing+=(python3-venv)
fi
if [ ${#missing[@]} -gt 0 ]; then
  log=$(mktemp)
  say "installing ${missing[*]} with apt …"
  if ! { $SUDO apt-get update && $SUDO env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "apt could not install ${missing[*]}. Read the lines above, mend it and run the command again." >&2
    exit 1
  fi
  rm -f "$log"
  # Debian starts what it installs. Ours run on ports and folders of their own, so these are not needed.
  if [ -d /run/systemd/system ]; then
    for unit in mosquitto docker-registry postgresql prometheus haproxy; do
      case " ${missing[*]} " in
        *" $unit "*)
          say "stopping the $unit service that the package started: Wherry starts its own"
          $SUDO systemctl disable --now --quiet "$unit" || true
          ;;
      esac
    done
  fi
fi

stamp=.venv/.lock-sha256
want=$(cat requirements/tools.txt requirements/dev.txt pyproject.toml | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]; then
  say "installing Python packages into .venv (pinned, with hashes) …"
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/tools.txt 2>&1 |
    { grep -v '^WARNING: Location' || true; }
  .venv/bin/uv pip install -q -p .venv/bin/python --compile-bytecode --require-hashes \
    -r requirements/dev.txt
  .venv/bin/uv pip install -q -p .venv/bin/python --no-deps --no-build-isolation -e .
  echo "$want" >"$stamp"
fi
bash scripts/assets.sh
bash scripts/engine.sh start
