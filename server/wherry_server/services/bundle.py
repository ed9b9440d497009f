"""What a machine downloads to become a device: the agent as a wheel, its pinned packages, its unit, the script.

Made from the server's own installation, so that devices run what their server was shipped with. The same
installation always gives the same bytes; the script names each by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from wherry import __version__
from wherry.errors import NotFound
from wherry.profile import profiles_folder
from wherry_server.services.context import Context

WHEEL = f"wherry-{__version__}-py3-none-any.whl"
PACKAGES = "agent.txt"
UNITS = {"UNIT": "wherry-agent.service", "PROXY": "wherry-haproxy.service", "PROXY_PATH": "wherry-haproxy.path"}
"""By the name that install.sh gives their hashes."""
WHEELS_FOLDER = "wheels"
"""In the data folder: packages for devices that reach no index; see `pip download -r agent.txt`."""
_HERE = Path(__file__).parent.parent / "install"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_METADATA = f"Metadata-Version: 2.1\nName: wherry\nVersion: {__version__}\n"
_ABOUT_WHEEL = "Wheel-Version: 1.0\nGenerator: wherry-server\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_SCRIPTS = "[console_scripts]\nwherry-agent = wherry_agent.app:main\n"


@cache
def install_files() -> Mapping[str, bytes]:
    """The files under /install/, by name.

    Raises:
        NotFound: the server was installed without the agent.
    """
    return {
        WHEEL: _agent_wheel(),
        PACKAGES: _shipped("requirements/agent.txt"),
        **{name: _shipped(f"deploy/systemd/{name}") for name in UNITS.values()},
    }


def install_script(context: Context) -> str:
    """The script for this server: its address, its CA and the hashes of what it downloads.

    Raises:
        NotFound: the server was installed without the agent.
    """
    files = install_files()
    values = {
        "SERVER": context.config.public_url,
        "AGENT": WHEEL,
        "AGENT_SHA256": _sha256(files[WHEEL]),
        "PACKAGES_SHA256": _sha256(files[PACKAGES]),
        **{f"{key}_SHA256": _sha256(files[name]) for key, name in UNITS.items()},
        "OFFLINE": "yes" if (context.config.data / WHEELS_FOLDER).is_dir() else "",
        "CA": context.authority.ca_pem.strip(),
    }
    script = (_HERE / "install.sh").read_text(encoding="utf-8")
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script


def offline_wheels(context: Context) -> Mapping[str, Path]:
    """Packages that devices may take from this server, by file name."""
    folder = context.config.data / WHEELS_FOLDER
    return {path.name: path for path in sorted(folder.glob("*.whl"))}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _agent_wheel() -> bytes:
    """The contract and the agent as a wheel; what they need is in the lock file."""
    files = {**dict(_package("wherry")), **dict(_package("wherry_agent"))}
    files |= {f"wherry/device_profiles/{path.name}": path.read_bytes() for path in profiles_folder().glob("*.toml")}
    about = f"wherry-{__version__}.dist-info"
    for name, text in (("METADATA", _METADATA), ("WHEEL", _ABOUT_WHEEL), ("entry_points.txt", _SCRIPTS)):
        files[f"{about}/{name}"] = text.encode()
    record = "".join(f"{name},sha256={_record_hash(body)},{len(body)}\n" for name, body in sorted(files.items()))
    files[f"{about}/RECORD"] = f"{record}{about}/RECORD,,\n".encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, body)
    return out.getvalue()


def _record_hash(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode().rstrip("=")


def _package(name: str) -> Iterator[tuple[str, bytes]]:
    """Files of an installed package, without importing it."""
    root = _folder(name)
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and "__pycache__" not in inside.parts:
            yield f"{name}/{inside.as_posix()}", path.read_bytes()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise NotFound(
            f"package {package}",
            "is not installed beside this server, so it cannot make devices",
            "Install the whole wherry distribution where the server runs",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _shipped(path: str) -> bytes:
    """A file that is in the wheel, or in the checkout that is installed for development."""
    places = [_HERE / Path(path).name, _folder("wherry").parent / path]
    cli = find_spec("wherry_cli")
    if cli and cli.submodule_search_locations:
        places.append(Path(next(iter(cli.submodule_search_locations))) / path)
    for place in places:
        if place.is_file():
            return place.read_bytes()
    raise NotFound(f"file {path}", "is not installed with this server", "Install the whole wherry distribution")
