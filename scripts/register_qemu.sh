#!/bin/sh
# Lets this machine's kernel run arm64 programs through qemu-user, in containers too. Run as root; twice does no harm.
# It lasts until the next boot. Flag F in the rule makes the kernel open qemu now, so images need no copy of it.
set -eu

architecture=${1:-aarch64}
rule=/usr/lib/binfmt.d/qemu-$architecture.conf
folder=/proc/sys/fs/binfmt_misc

if [ ! -e "$folder/register" ]; then
  mount -t binfmt_misc binfmt_misc "$folder" || {
    echo "register_qemu: cannot mount binfmt_misc on $folder: run as root, on a kernel that has it" >&2
    exit 1
  }
fi
if [ -e "$folder/qemu-$architecture" ]; then
  echo "qemu-$architecture is registered already"
  exit 0
fi
if [ ! -e "$rule" ]; then
  echo "register_qemu: $rule is missing: apt-get install qemu-user-static" >&2
  exit 1
fi
cat "$rule" > "$folder/register"
echo "registered qemu-$architecture"
