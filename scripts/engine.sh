#!/usr/bin/env bash
# Starts a Docker engine if none answers; one that runs is left alone. Usage: scripts/engine.sh start|stop
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"
SUDO=""
[ "$(id -u)" = 0 ] || SUDO=sudo
say() { printf '\033[1m[engine]\033[0m %s\n' "$*"; }
answers() { $SUDO curl -fs --max-time 5 --unix-socket /var/run/docker.sock http://engine/_ping >/dev/null 2>&1 ||
  $SUDO docker version >/dev/null 2>&1; }
ours=build/engine/dockerd.pid

# Whether a pid file names a process of that name, and not one that was killed and waits for its parent.
lives() {
  local pid
  pid=$(cat "$1" 2>/dev/null) && grep -qs "$2" "/proc/$pid/comm" && ! grep -qs '^State:[[:space:]]*Z' "/proc/$pid/status"
}

start() {
  if answers; then return; fi
  if [ -d /run/systemd/system ]; then
    say "starting the Docker engine through systemd"
    $SUDO systemctl start docker
  else
    say "starting the Docker engine (no systemd here; log in build/engine/dockerd.log)"
    mkdir -p build/engine
    # Those that were killed leave their pid files behind; the engine would refuse to start, or wait for them.
    lives /var/run/docker.pid dockerd || $SUDO rm -f /var/run/docker.pid
    lives /var/run/docker/containerd/containerd.pid containerd || $SUDO rm -f /var/run/docker/containerd/containerd.pid
    $SUDO setsid nohup dockerd >build/engine/dockerd.log 2>&1 </dev/null &
    echo started >"$ours"
  fi
  for _ in $(seq 60); do
    if answers; then return; fi
    sleep 1
  done
  tail -n 20 build/engine/dockerd.log >&2 || true
  say "the Docker engine did not start within 60 s. Read the lines above." >&2
  exit 1
}

stop() {
  if [ ! -f "$ours" ]; then
    say "this engine was not started by us; left alone"
    return
  fi
  say "stopping the Docker engine that we started"
  $SUDO kill "$(cat /var/run/docker.pid)" 2>/dev/null || true
  rm -f "$ours"
}

"${1:-start}"
