"""Loads a root file system (a tar) into the engine as an image of a given architecture.

`docker import --platform` of older engines records the host's architecture instead, so the image's
configuration is written here, in the archive form that `docker load` takes everywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path


def main() -> int:
    """Usage: load_rootfs.py ROOTFS.tar NAME:TAG ARCHITECTURE."""
    rootfs, name, architecture = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with rootfs.open("rb") as stream:
        layer = hashlib.file_digest(stream, "sha256").hexdigest()
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": [path], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
        }
    ).encode()
    identity = hashlib.sha256(config).hexdigest()
    manifest = json.dumps(
        [{"Config": f"{identity}.json", "RepoTags": [name], "Layers": [f"{layer}/layer.tar"]}]
    ).encode()
    engine = subprocess.Popen(["docker", "load", "--quiet"], stdin=subprocess.PIPE)
    with tarfile.open(fileobj=engine.stdin, mode="w|") as archive:
        for member, data in ((f"{identity}.json", config), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(member)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        archive.add(rootfs, f"{layer}/layer.tar")
    if engine.stdin:
        engine.stdin.close()
    return engine.wait()


if __name__ == "__main__":
    sys.exit(main())
