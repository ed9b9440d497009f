#!/bin/sh
# Makes this machine a Wherry device, or upgrades it, or removes all of it again.
#   curl … /install.sh | sh -s -- TOKEN            the line that `wherry device token` printed
#   curl … /install.sh | sh                        upgrade; the device keeps its identity and what it serves
#   curl … /install.sh | sh -s -- --uninstall      remove all of it
# Options: --profile NAME, --state DIR, --prefix DIR, --no-service, --keep-state and --yes (with --uninstall).
# Nothing takes effect before everything was downloaded and verified. It is safe to run it again at any time.
set -eu

SERVER='@SERVER@'
AGENT='@AGENT@'
AGENT_SHA256='@AGENT_SHA256@'
PACKAGES_SHA256='@PACKAGES_SHA256@'
UNIT_SHA256='@UNIT_SHA256@'
OFFLINE='@OFFLINE@'

TOKEN='' PROFILE='' STATE=/var/lib/wherry PREFIX=/opt/wherry SERVICE=yes UNINSTALL='' KEEP_STATE='' YES=''
UNIT=/etc/systemd/system/wherry-agent.service
LINK=/usr/local/bin/wherry-agent
WORK='' HALF_DONE=''

say() { printf '%s\n' "wherry: $*"; }
die() {
  printf '%s\n' "wherry: $*" >&2
  exit 1
}
clean_up() {
  [ -z "$WORK" ] || rm -rf "$WORK"
  if [ -n "$HALF_DONE" ]; then
    rm -rf "$HALF_DONE"
    rmdir "$PREFIX/versions" "$PREFIX" 2>/dev/null || true
  fi
}

value() { [ -n "${2:-}" ] || die "$1 needs a value"; }

read_arguments() {
  while [ $# -gt 0 ]; do
    case "$1" in
      --profile) value "$@"; PROFILE=$2; shift ;;
      --state) value "$@"; STATE=$2; shift ;;
      --prefix) value "$@"; PREFIX=$2; shift ;;
      --no-service) SERVICE='' ;;
      --uninstall) UNINSTALL=yes ;;
      --keep-state) KEEP_STATE=--keep-state ;;
      --yes) YES=--yes ;;
      wherry1.*) TOKEN=$1 ;;
      *) die "cannot read '$1'. Give the line that \`wherry device token\` printed, and options as the script lists" ;;
    esac
    shift
  done
  case "$STATE$PREFIX" in *' '*) die "folders with spaces in their names are not supported" ;; esac
  case "$STATE" in /*) ;; *) die "--state must be an absolute path" ;; esac
  case "$PREFIX" in /*) ;; *) die "--prefix must be an absolute path" ;; esac
}

# -- what the machine must have -----------------------------------------------------------------------

PROBLEMS='' APT=''
problem() { PROBLEMS="$PROBLEMS
  - $1"; }
lacks() {
  problem "$1"
  APT="$APT $2"
}
have() { command -v "$1" >/dev/null 2>&1; }

check_programs() {
  PATH="$PATH:/usr/sbin:/sbin"
  have curl || lacks "curl is missing" curl
  have sha256sum || lacks "sha256sum is missing" coreutils
  have nft || lacks "nft is missing: the agent turns ports with nftables" nftables
  [ -S "${DOCKER_SOCKET:-/var/run/docker.sock}" ] || [ -n "${DOCKER_HOST:-}" ] || have dockerd ||
    lacks "Docker is missing: it runs the models" docker.io
  if ! have python3; then
    lacks "python3 is missing" "python3 python3-venv"
  elif ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    problem "$(python3 --version 2>&1) is too old: 3.11 or newer is needed"
  elif ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    lacks "python3 cannot make virtual environments" python3-venv
  fi
}

check_machine() {
  [ "$(id -u)" = 0 ] || problem "this needs root: run it with sudo sh"
  case "$(uname -m)" in
    x86_64 | aarch64) ;;
    *) problem "$(uname -m) is not supported: x86_64 and aarch64 are" ;;
  esac
  for place in "$STATE" "$PREFIX"; do
    case "$SYSTEMD:$place/" in
      yes:/home/* | yes:/root/* | yes:/tmp/* | yes:/var/tmp/*) problem "$place is hidden from services: use another folder" ;;
    esac
  done
  [ "$(date +%Y)" -ge 2026 ] || problem "the clock says $(date +%F): set it, or no certificate will be believed"
  folder=$PREFIX
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  free=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge 307200 ] || problem "only $((free / 1024)) MB are free at $folder: 300 MB are needed"
}

check() {
  check_machine
  check_programs
  [ -n "$PROBLEMS" ] || return 0
  say "this machine cannot be a device yet:$PROBLEMS" >&2
  [ -z "$APT" ] || say "on Debian and its kin: apt-get update && apt-get install -y$APT" >&2
  die "nothing was changed. Mend that and run the same line again"
}

# -- fetching ----------------------------------------------------------------------------------------

write_ca() {
  cat >"$WORK/ca.crt" <<'CERTIFICATE'
@CA@
CERTIFICATE
}

fetch() { # name sha256
  curl -fsS --proto '=https' --cacert "$WORK/ca.crt" --retry 5 --retry-connrefused --max-time 300 \
    -o "$WORK/$1" "$SERVER/install/$1" || die "$1 could not be downloaded from $SERVER. Nothing was changed"
  printf '%s  %s\n' "$2" "$WORK/$1" | sha256sum -c - >/dev/null 2>&1 ||
    die "$1 is not what this script expects: fetch the script again. Nothing was changed"
}

download() {
  fetch "$AGENT" "$AGENT_SHA256"
  fetch agent.txt "$PACKAGES_SHA256"
  fetch wherry-agent.service "$UNIT_SHA256"
}

# -- installing --------------------------------------------------------------------------------------

pip_install() {
  PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore "$VERSION/bin/python" -m pip install -q "$@" ||
    die "the Python packages could not be installed. Nothing was changed"
}

make_environment() {
  VERSION=$PREFIX/versions/$(printf '%s' "$AGENT_SHA256$PACKAGES_SHA256" | sha256sum | cut -c1-16)
  if [ -e "$VERSION/complete" ] && "$VERSION/bin/wherry-agent" --version >/dev/null 2>&1; then
    say "the agent is up to date"
    return 0
  fi
  rm -rf "$VERSION"
  HALF_DONE=$VERSION
  mkdir -p "$PREFIX/versions"
  say "making a Python environment in $VERSION"
  python3 -m venv "$VERSION"
  if [ -n "$OFFLINE" ]; then
    unset REQUESTS_CA_BUNDLE CURL_CA_BUNDLE # they would win over --cert
    pip_install --no-index --find-links "$SERVER/install/wheels/" --cert "$WORK/ca.crt" --only-binary=:all: \
      --require-hashes -r "$WORK/agent.txt"
  else
    pip_install --only-binary=:all: --require-hashes -r "$WORK/agent.txt"
  fi
  pip_install --no-index --no-deps "$WORK/$AGENT"
  "$VERSION/bin/wherry-agent" --version >/dev/null || die "the agent does not start here. Nothing was changed"
  : >"$VERSION/complete"
  HALF_DONE=''
}

switch_over() {
  mkdir -p "$PREFIX/bin" "$STATE"
  chmod 711 "$STATE"
  ln -sfn "$VERSION/bin/wherry-agent" "$PREFIX/bin/.wherry-agent"
  mv -fT "$PREFIX/bin/.wherry-agent" "$PREFIX/bin/wherry-agent"
  {
    echo "state=$STATE"
    [ -z "$SYSTEMD" ] || echo "unit=$UNIT"
    [ -z "$SERVICE" ] || echo "link=$LINK"
  } >"$PREFIX/installed"
  [ -z "$SERVICE" ] || ln -sfn "$PREFIX/bin/wherry-agent" "$LINK"
}

remove_old_versions() {
  for old in "$PREFIX"/versions/*; do
    [ "$old" = "$VERSION" ] || rm -rf "$old"
  done
}

enrol() {
  if [ -e "$STATE/identity/device.json" ]; then
    say "this machine is a device already; it keeps its identity"
  elif [ -n "$TOKEN" ]; then
    set -- enroll --state "$STATE" "$TOKEN"
    [ -z "$PROFILE" ] || set -- "$@" --profile "$PROFILE"
    said=$("$AGENT_BIN" "$@") || die "it is installed, but could not enrol: see above"
    say "$(printf '%s\n' "$said" | head -n 1)"
  else
    die "installed, but not enrolled: run this again with the line that \`wherry device token\` prints"
  fi
}

stop_background() {
  pid=$(cat "$STATE/lock" 2>/dev/null || true)
  [ -n "$pid" ] && grep -q wherry-agent "/proc/$pid/cmdline" 2>/dev/null || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    [ -d "/proc/$pid" ] || return 0
    sleep 1
  done
  die "the agent that runs (process $pid) does not end. Stop it and run this again"
}

start() {
  if [ -n "$SYSTEMD" ]; then
    sed -e "s#/opt/wherry/#$PREFIX/#g" -e "s#/var/lib/wherry#$STATE#g" "$WORK/wherry-agent.service" >"$UNIT"
    systemctl daemon-reload
    systemctl enable --quiet wherry-agent.service
    systemctl restart wherry-agent.service
    return 0
  fi
  stop_background
  say "no systemd service: the agent runs in the background until the next reboot, its log is $STATE/agent.log."
  say "to start it at boot, run: $AGENT_BIN run --state $STATE"
  MALLOC_ARENA_MAX=1 setsid "$AGENT_BIN" run --state "$STATE" >>"$STATE/agent.log" 2>&1 </dev/null &
}

wait_until_it_runs() {
  for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30; do
    [ -S "$STATE/local.sock" ] && return 0
    sleep 1
  done
  say "the agent does not run yet: look at its log" >&2
}

install() {
  check
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/wherry-install.XXXXXX")
  trap clean_up EXIT
  trap 'exit 130' INT TERM HUP
  write_ca
  download
  make_environment
  switch_over
  enrol
  start
  wait_until_it_runs
  remove_old_versions
  "$AGENT_BIN" doctor --state "$STATE" || say "mend what stands above; \`wherry-agent doctor\` looks again"
  say "done. What it does: $AGENT_BIN status --watch --state $STATE"
  say "next, where you are the operator: wherry device list; wherry push MODEL; wherry rollout start MODEL VERSION"
}

uninstall() {
  [ "$(id -u)" = 0 ] || die "this needs root: run it with sudo sh"
  [ -x "$AGENT_BIN" ] || die "there is no agent in $PREFIX"
  set -- uninstall --state "$STATE"
  [ -z "$KEEP_STATE" ] || set -- "$@" "$KEEP_STATE"
  if [ -z "$YES" ] && [ -c /dev/tty ]; then
    "$AGENT_BIN" "$@" </dev/tty
  else
    [ -z "$YES" ] || set -- "$@" "$YES"
    "$AGENT_BIN" "$@"
  fi
}

main() {
  read_arguments "$@"
  AGENT_BIN=$PREFIX/bin/wherry-agent
  SYSTEMD=''
  [ -z "$SERVICE" ] || [ ! -d /run/systemd/system ] || SYSTEMD=yes
  if [ -n "$UNINSTALL" ]; then uninstall; else install; fi
}

# The last line: a download that was cut off does nothing.
main "$@"
