#!/bin/sh
# Makes this machine a Wherry device, or upgrades it, or removes all of it again.
#   curl … /install.sh | sh -s -- TOKEN            the line that `wherry device token` printed
#   curl … /install.sh | sh                        upgrade; the device keeps its identity and what it serves
#   curl … /install.sh | sh -s -- --uninstall      remove all of it
# Options: --profile NAME, --state DIR, --prefix DIR, --no-service, --keep-state and --yes (with --uninstall).
# Left out, --state and --prefix are those of the installation before, else /var/lib/wherry and /opt/wherry.
# Nothing takes effect before everything was downloaded and verified. It is safe to run it again at any time.
set -eu

SERVER='@SERVER@'
AGENT='@AGENT@'
AGENT_SHA256='@AGENT_SHA256@'
PACKAGES_SHA256='@PACKAGES_SHA256@'
UNIT_SHA256='@UNIT_SHA256@'
PROXY_SHA256='@PROXY_SHA256@'
PROXY_PATH_SHA256='@PROXY_PATH_SHA256@'
OFFLINE='@OFFLINE@'

TOKEN='' PROFILE='' STATE='' PREFIX='' SERVICE=yes UNINSTALL='' KEEP_STATE='' YES=''
UNIT=/etc/systemd/system/wherry-agent.service
PROXY=/etc/systemd/system/wherry-haproxy # .path and .service: haproxy, once a slot needs it and where it is installed
LINK=/usr/local/bin/wherry-agent
WORK='' HALF_DONE='' BEFORE='' STARTED=''

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
  PREFIX=${PREFIX:-$(installed_prefix)}
  STATE=${STATE:-$(installed_state)}
  [ "$STATE" = / ] || STATE=${STATE%/}
  [ "$PREFIX" = / ] || PREFIX=${PREFIX%/}
  check_name --state "$STATE"
  check_name --prefix "$PREFIX"
  [ "${#STATE}" -le 90 ] || die "--state is too long for the socket in it: 90 characters at most"
}

installed_prefix() { # where the installation before put the program, else the usual place
  made=$(readlink "$LINK" 2>/dev/null || true)
  made=${made%/bin/wherry-agent}
  if [ -n "$made" ] && grep -q '^state=/' "$made/installed" 2>/dev/null; then echo "$made"; else echo /opt/wherry; fi
}

installed_state() { # of the installation in $PREFIX, else the usual place
  made=$(sed -n 's/^state=//p' "$PREFIX/installed" 2>/dev/null || true)
  echo "${made:-/var/lib/wherry}"
}

# -- whose folders they are ---------------------------------------------------------------------------
# What another program put somewhere is never changed or removed. `wherry-agent uninstall` has the same rules.

check_name() { # option folder
  case "$2" in
    *[!A-Za-z0-9/._-]*) die "$1: only letters, digits and / . _ - may be in a folder's name" ;;
    /*) ;;
    *) die "$1 must be an absolute path" ;;
  esac
  if is_system "$2" || is_system "$(readlink -m "$2" 2>/dev/null || echo "$2")"; then
    die "$1: $2 is a folder of the system; name one of Wherry's own, such as /opt/wherry or /var/lib/wherry"
  fi
  case "$2/" in */./* | */../* | *//*) die "$1 must be written without . and .. and //" ;; esac
}

is_system() {
  case "$1" in
    /usr/local/bin | /usr/local/etc | /usr/local/games | /usr/local/include | /usr/local/lib) return 0 ;;
    /usr/local/man | /usr/local/sbin | /usr/local/share | /usr/local/src) return 0 ;;
    /usr/local/?*) return 1 ;;
    /bin/* | /boot/* | /dev/* | /etc/* | /lib/* | /lib32/* | /lib64/* | /proc/* | /sbin/* | /sys/* | /usr/*) return 0 ;;
    /home/*/* | /run/*/* | /var/*/*) return 1 ;;
    /home/* | /run/* | /var/*) return 0 ;;
    /*/*) return 1 ;;
  esac
  return 0
}

is_version() { # one of our folders under versions/
  case "${1##*/}" in
    *[!0-9a-f]*) return 1 ;;
    ????????????????) [ -d "$1" ] && [ ! -L "$1" ] ;;
    *) return 1 ;;
  esac
}

owns_prefix() { # it is not there, or empty, or ours; an installation that was killed leaves versions only
  if [ -f "$PREFIX/installed" ]; then
    grep -q '^state=/' "$PREFIX/installed"
    return
  fi
  for inside in "$PREFIX"/* "$PREFIX"/.[!.]* "$PREFIX"/versions/* "$PREFIX"/versions/.[!.]*; do
    [ -e "$inside" ] || [ -L "$inside" ] || continue
    [ "$inside" = "$PREFIX/versions" ] || [ "$inside" = "$PREFIX/installed.new" ] || is_version "$inside" || return 1
  done
}

owns_state() { # it is not there, or a device's, or holds nothing but what an agent writes
  [ ! -e "$STATE/identity/device.json" ] && [ ! -e "$STATE/journal.db" ] || return 0
  for inside in "$STATE"/* "$STATE"/.[!.]*; do
    [ -e "$inside" ] || [ -L "$inside" ] || continue
    case "${inside##*/}" in
      identity | registries | tuf | lock | status.json | status.new | update.lock | update.new | local.sock | lost+found) ;;
      agent | spool.db* | agent.toml | agent.log | agent.log.1 | haproxy) ;;
      *) return 1 ;;
    esac
  done
}

check_folders() {
  owns_prefix || problem "$PREFIX holds other things than Wherry's: use another --prefix"
  owns_state || problem "$STATE holds other things than Wherry's: use another --state"
  [ -z "$SERVICE" ] || [ -L "$LINK" ] || [ ! -e "$LINK" ] || problem "$LINK is there already, and is not ours"
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
  check_folders
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
  fetch wherry-haproxy.service "$PROXY_SHA256"
  fetch wherry-haproxy.path "$PROXY_PATH_SHA256"
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

point_at() { # program; in one step, so that there is always one
  ln -sfn "$1" "$PREFIX/bin/.wherry-agent"
  mv -fT "$PREFIX/bin/.wherry-agent" "$PREFIX/bin/wherry-agent"
}

switch_over() {
  {
    echo "state=$STATE"
    [ -z "$SYSTEMD" ] || printf '%s\n' "unit=$UNIT" "proxy=$PROXY"
    [ -z "$SERVICE" ] || echo "link=$LINK"
  } >"$PREFIX/installed.new"
  mv -f "$PREFIX/installed.new" "$PREFIX/installed"
  if [ ! -d "$STATE" ]; then
    mkdir -p "$STATE"
    chmod 711 "$STATE"
  fi
  mkdir -p "$PREFIX/bin"
  BEFORE=$(readlink "$PREFIX/bin/wherry-agent" || true)
  point_at "$VERSION/bin/wherry-agent"
  [ -z "$SERVICE" ] || ln -sfn "$PREFIX/bin/wherry-agent" "$LINK"
}

remove_old_versions() {
  for old in "$PREFIX"/versions/*; do
    if [ "$old" != "$VERSION" ] && is_version "$old" && [ -f "$old/complete" ]; then rm -rf "$old"; fi
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
  pid=$(cat "$STATE/agent/lock" 2>/dev/null || cat "$STATE/lock" 2>/dev/null || true)
  [ -n "$pid" ] && grep -q 'wherry.agent' "/proc/$pid/cmdline" 2>/dev/null || return 0
  kill "$pid" 2>/dev/null || return 0
  waited=0
  while [ "$waited" -lt 50 ]; do
    [ -d "/proc/$pid" ] || return 0
    sleep 1
    waited=$((waited + 1))
  done
  die "the agent that runs (process $pid) does not end. Stop it and run this again"
}

write_unit() {
  [ ! -f "$UNIT" ] || cp "$UNIT" "$WORK/unit.before"
  sed -e "s#/opt/wherry/#$PREFIX/#g" -e "s#/var/lib/wherry#$STATE#g" "$WORK/wherry-agent.service" >"$UNIT"
  for kind in path service; do
    sed -e "s#/var/lib/wherry/#$STATE/#g" "$WORK/wherry-haproxy.$kind" >"$PROXY.$kind"
  done
}

start() {
  STARTED=''
  # What was just installed is to run, and no release of the agent that came later; the server's wish follows by trial.
  if [ -n "$SYSTEMD" ]; then
    systemctl daemon-reload
    systemctl enable --quiet wherry-agent.service
    systemctl enable --quiet --now wherry-haproxy.path || true # without it, haproxy is not used and the doctor says so
    systemctl stop wherry-agent.service || true
    rm -f "$STATE/agent/versions"
    systemctl start wherry-agent.service || true # whether it runs is asked of the agent itself
    return 0
  fi
  stop_background
  rm -f "$STATE/agent/versions"
  (
    umask 077
    : >>"$STATE/agent.log"
    chmod 600 "$STATE/agent.log"
    export MALLOC_ARENA_MAX=1
    command=supervise
    "$AGENT_BIN" supervise --help >/dev/null 2>&1 || command=run # one from before there was a supervisor
    exec setsid "$AGENT_BIN" "$command" --state "$STATE" "$@" >>"$STATE/agent.log" 2>&1 </dev/null
  ) &
  STARTED=$!
}

runs() { # a socket that a killed agent left does not answer
  curl -fsS --noproxy '*' --max-time 5 --unix-socket "$STATE/local.sock" http://wherry/v1/slots >/dev/null 2>&1
}

wait_until_it_runs() {
  waited=0
  while [ "$waited" -lt 90 ]; do
    if runs; then return 0; fi
    [ -z "$STARTED" ] || kill -0 "$STARTED" 2>/dev/null || return 1
    if grep -q '^crashes [2-9]' "$STATE/agent/versions" 2>/dev/null; then return 1; fi
    sleep 1
    waited=$((waited + 1))
  done
  return 1
}

# Whatever a new agent cannot do here, the one before could: it takes over again.
switch_back() {
  say "the new agent does not run: back to the one before" >&2
  [ -z "$STARTED" ] || kill "$STARTED" 2>/dev/null || true
  point_at "$BEFORE"
  [ ! -f "$WORK/unit.before" ] || cp "$WORK/unit.before" "$UNIT"
  start
  wait_until_it_runs || die "the agent before does not run either: look at its log"
  die "the upgrade was taken back: the agent before runs again. Why the new one did not is in its log"
}

start_and_prove() {
  [ -z "$SYSTEMD" ] || write_unit
  start --log "$STATE/agent.log"
  if wait_until_it_runs; then
    remove_old_versions
  elif [ -x "$BEFORE" ] && [ "$BEFORE" != "$VERSION/bin/wherry-agent" ]; then
    switch_back
  else
    "$AGENT_BIN" doctor --state "$STATE" || true
    die "installed, but the agent does not run: see above, and look at its log"
  fi
  [ -n "$SYSTEMD" ] || {
    say "no systemd service: the agent runs in the background until the next reboot, its log is $STATE/agent.log."
    say "to start it at boot, run: $AGENT_BIN supervise --state $STATE"
  }
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
  start_and_prove
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
