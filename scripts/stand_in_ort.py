"""Writes a wheel that looks like ONNX Runtime for Jetson and holds GPU code for given architectures: none that runs.

NVIDIA's wheels cannot be had everywhere; with this one the build of Dockerfile.jetson is tried up to its check.
Usage: stand_in_ort.py FOLDER SM[,SM…]; prints the file's name and its SHA-256.
"""

from __future__ import annotations

import hashlib
import struct
import sys
import zipfile
from pathlib import Path

_HEADER, _ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQIIHHI")
_MAGIC, _PTX, _MACHINE_CODE = 0xBA55ED50, 1, 2
_VERSION = "0.0.0"
LIBRARY = "onnxruntime/capi/libonnxruntime_providers_cuda.so"


def fat_binary(machine_code: list[int], ptx: list[int] | None = None) -> bytes:
    """What CUDA's compiler puts into a library: a header, then an entry for each GPU."""
    code = b"\x7fELF and so on".ljust(24, b"\0")
    entries = b"".join(
        _ENTRY.pack(kind, 0, _ENTRY.size + 24, len(code), 0, 0, 0, 1, sm).ljust(_ENTRY.size + 24, b"\0") + code
        for kind, names in ((_PTX, ptx or []), (_MACHINE_CODE, machine_code))
        for sm in names
    )
    return _HEADER.pack(_MAGIC, 1, _HEADER.size, len(entries)) + entries


def library(machine_code: list[int], ptx: list[int] | None = None) -> bytes:
    """A shared library's worth of other bytes around two fat binaries; what it says of sm_87 in text is no code."""
    half = len(machine_code) // 2
    parts = [fat_binary(machine_code[:half], ptx), fat_binary(machine_code[half:])]
    return b"\x7fELF" + b"built without sm_87 \0".join([b"text\0", *parts, b"the end"])


def write_wheel(folder: Path, machine_code: list[int]) -> Path:
    """The wheel, in a folder."""
    name = f"onnxruntime_gpu-{_VERSION}"
    files = {
        "onnxruntime/__init__.py": b'raise ImportError("this is a stand-in for ONNX Runtime; it runs nothing")\n',
        LIBRARY: library(machine_code),
        f"{name}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: {_VERSION}\n".encode(),
        f"{name}.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp311-cp311-linux_aarch64\n",
    }
    files[f"{name}.dist-info/RECORD"] = "".join(f"{path},,\n" for path in files).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-cp311-cp311-linux_aarch64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in files.items():
            archive.writestr(zipfile.ZipInfo(path), content)
    return wheel


def main() -> int:
    """Write it, and say its name and hash."""
    wheel = write_wheel(Path(sys.argv[1]), [int(sm) for sm in sys.argv[2].split(",")])
    print(wheel.name, hashlib.sha256(wheel.read_bytes()).hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
