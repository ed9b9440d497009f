"""OCI references: where an image is, and over which scheme its registry is reached."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from wherry.errors import InputError

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?"
_PATH = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:(?P<registry>{_HOST})/)?(?P<repository>{_PATH}(?:/{_PATH})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A registry, a repository in it, and a tag or digest (the digest wins)."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def version(self) -> str:
        """What names the manifest: digest, tag, or `latest`."""
        return self.digest or self.tag or "latest"

    @property
    def name(self) -> str:
        """Registry and repository, without tag."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return f"{self.name}{f'@{self.digest}' if self.digest else f':{self.version}'}"


def _is_host(text: str) -> bool:
    return "." in text or ":" in text or text == "localhost"


def parse_reference(text: str, default_registry: str | None = None) -> Reference:
    """Read `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`.

    The first part is a host when it holds a dot or a colon or is `localhost`, as everywhere. Without a host the
    reference is in `default_registry`: there is no registry of the world here.

    Raises:
        InputError: not a reference, or without a host and no default is given.
    """
    registry, _, rest = text.partition("/")
    if rest and _is_host(registry):
        match = _REFERENCE.fullmatch(text)
    else:
        match = _REFERENCE.fullmatch(f"{default_registry}/{text}") if default_registry else None
    if match is None or match["registry"] is None:
        raise InputError(
            f"image reference {text!r}",
            "is not HOST[:PORT]/REPOSITORY[:TAG][@sha256:…]",
            "Write the registry's host too, or give --registry",
        )
    return Reference(match["registry"], match["repository"], match["tag"], match["digest"])


def check_registry(text: str) -> str:
    """A registry as HOST or HOST:PORT.

    Raises:
        InputError: it is something else, such as a URL.
    """
    if re.fullmatch(_HOST, text) is None:
        raise InputError(f"registry {text!r}", "is not HOST or HOST:PORT", "Leave out the scheme and the path")
    return text


def is_loopback(host: str) -> bool:
    """Whether a host (without port) is this machine: 127.0.0.0/8, ::1 or localhost."""
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def registry_url(registry: str) -> str:
    """The registry's base URL: plain http on this machine only, https everywhere else."""
    host = registry if registry.endswith("]") else registry.rsplit(":", 1)[0] if ":" in registry else registry
    return f"{'http' if is_loopback(host) else 'https'}://{registry}"
