"""The owner's key files: `<name>.pem` (private, mode 0600) and `<name>.pub` beside it.

With $WHERRY_KEY_PASSPHRASE set, private keys are written encrypted (PKCS #8) and read with it. A root key can be
moved to another medium after `wherry keys init`: publishing needs `targets` and `snapshot` only.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from wherry.errors import ConfigError, Conflict, InputError, NotFound, StoreError
from wherry_cli.repository import OwnerKeys

PASSPHRASE_VARIABLE = "WHERRY_KEY_PASSPHRASE"  # noqa: S105 - a variable's name
NEXT = "next-"
"""Before the names of keys that are to take over."""
RETIRED = "retired"
KeyKind = Literal["p256", "ed25519"]
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


class KeyStore:
    """A folder of keys, `$WHERRY_HOME/keys`.

    Args:
        folder: made with mode 0700 when the first key is created.
        passphrase: protects private keys; None writes them in the clear.
    """

    def __init__(self, folder: Path, passphrase: str | None = None) -> None:
        self._folder = folder
        self._passphrase = passphrase.encode() if passphrase else None

    @classmethod
    def from_environment(cls, folder: Path, env: Mapping[str, str] | None = None) -> KeyStore:
        """A store whose passphrase is $WHERRY_KEY_PASSPHRASE."""
        return cls(folder, (os.environ if env is None else env).get(PASSPHRASE_VARIABLE))

    def names(self) -> list[str]:
        """The names of the private keys in the folder, without those that wait to take over."""
        return sorted(path.stem for path in self._folder.glob("*.pem") if not path.stem.startswith(NEXT))

    def create(self, name: str, kind: KeyKind = "p256") -> CryptoSigner:
        """Make a key pair and write both files.

        Raises:
            InputError: not a usable name.
            Conflict: a key of this name exists; keys are never overwritten.
            StoreError: a file cannot be written.
        """
        if not _NAME.fullmatch(name):
            raise InputError(f"key name {name[:80]!r}", "is not made of a-z, 0-9 and -")
        if self._private(name).exists() or self._public(name).exists():
            raise Conflict(
                f"key {name}", f"exists in {self._folder}", "Choose another folder, or move the old key away"
            )
        signer = CryptoSigner.generate_ed25519() if kind == "ed25519" else CryptoSigner.generate_ecdsa()
        public = {"keyid": signer.public_key.keyid, **signer.public_key.to_dict()}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_new(self._private(name), self._encode(signer), 0o600)
            _write_new(self._public(name), json.dumps(public, indent=1).encode() + b"\n", 0o644)
        except OSError as error:
            raise StoreError(f"key {name}", f"cannot be written to {self._folder} ({error.strerror})") from error
        return signer

    def load(self, name: str) -> CryptoSigner:
        """Read a private key.

        Raises:
            NotFound: no such key here.
            ConfigError: the passphrase is missing or wrong, or the file is damaged.
            StoreError: the file cannot be read.
        """
        try:
            pem = self._private(name).read_bytes()
        except FileNotFoundError as error:
            fix = "Run `wherry keys init`, or bring the key file here"
            raise NotFound(f"key {name}", f"is not in {self._folder}", fix) from error
        except OSError as error:
            raise StoreError(f"key {name}", f"cannot be read from {self._folder} ({error.strerror})") from error
        return self._decode(name, pem)

    def create_owner_keys(self, roots: int = 1, kind: KeyKind = "p256") -> OwnerKeys:
        """Make `root-1` … `root-N`, `targets` and `snapshot`.

        Raises:
            Conflict: one of them exists; none is made then.
            InputError: not between 1 and 9 root keys.
            StoreError: as `create`.
        """
        if not 1 <= roots <= 9:
            raise InputError("number of root keys", f"{roots} is not between 1 and 9")
        names = [f"root-{number}" for number in range(1, roots + 1)]
        taken = [name for name in (*names, "targets", "snapshot") if name in self.names()]
        if taken:
            raise Conflict(f"key {taken[0]}", f"exists in {self._folder}", "Keep it: it signs what your devices trust")
        root = tuple(self.create(name, kind) for name in names)
        return OwnerKeys(self.create("targets", kind), self.create("snapshot", kind), root)

    def owner_keys(self, with_root: bool = False) -> OwnerKeys:
        """The keys for publishing; with every root key that is in the folder when asked for.

        Raises:
            NotFound, ConfigError, StoreError: as `load`.
        """
        roots = self.root_keys() if with_root else ()
        return OwnerKeys(self.load("targets"), self.load("snapshot"), roots)

    def root_keys(self) -> tuple[CryptoSigner, ...]:
        """Every root key that is in the folder.

        Raises:
            NotFound: there is none.
            ConfigError, StoreError: as `load`.
        """
        roots = [name for name in self.names() if name.startswith("root-")]
        if not roots:
            raise NotFound("key root-1", f"is not in {self._folder}", "Bring a root key file here for this command")
        return tuple(self.load(name) for name in roots)

    def next_keys(self, names: Sequence[str], kind: KeyKind = "p256") -> dict[str, CryptoSigner]:
        """Keys that are to take the place of those of these names; the same ones until they did.

        Raises:
            Conflict: an interrupted replacement made another number of root keys.
            InputError, ConfigError, StoreError: as `create` and `load`.
        """
        waiting = {path.stem for path in self._folder.glob(f"{NEXT}root-*.pem")}
        wanted = {f"{NEXT}{name}" for name in names}
        if any(name.startswith(f"{NEXT}root-") for name in wanted) and not waiting <= wanted:
            reason = f"wait in {self._folder} from a replacement that did not end"
            raise Conflict(f"{len(waiting)} root keys", reason, f"Say --roots {len(waiting)}, or delete {NEXT}root-*")
        found = {}
        for name in names:
            there = self._private(f"{NEXT}{name}").exists()
            found[name] = self.load(f"{NEXT}{name}") if there else self.create(f"{NEXT}{name}", kind)
        return found

    def take_over(self, keyids: Collection[str]) -> list[str]:
        """Put next keys in use that the newest root names, and retire what it names no more; the names put in use.

        May be killed anywhere and called again.

        Raises:
            StoreError: a file cannot be read or moved.
        """
        try:
            ready = [path for path in sorted(self._folder.glob(f"{NEXT}*.pub")) if _keyid(path) in keyids]
            if not ready:
                return []
            for path in self._folder.glob("*.pub"):
                if not path.stem.startswith(NEXT) and _keyid(path) not in keyids:
                    self._retire(path.stem, _keyid(path))
            for path in ready:
                name = path.stem.removeprefix(NEXT)
                if self._private(path.stem).exists():
                    self._private(path.stem).rename(self._private(name))
                path.rename(self._public(name))  # last: it says that this is still to be done
        except (OSError, ValueError, KeyError) as error:
            raise StoreError(f"keys in {self._folder}", f"cannot be put in use ({error})") from error
        return [path.stem.removeprefix(NEXT) for path in ready]

    def _retire(self, name: str, keyid: str) -> None:
        folder = self._folder / RETIRED
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in (self._private(name), self._public(name)):
            if path.exists():
                path.rename(folder / f"{name}-{keyid[:8]}{path.suffix}")

    def _private(self, name: str) -> Path:
        return self._folder / f"{name}.pem"

    def _public(self, name: str) -> Path:
        return self._folder / f"{name}.pub"

    def _encode(self, signer: CryptoSigner) -> bytes:
        # CryptoSigner writes unencrypted keys only, so its own text goes through the library once more.
        private = load_pem_private_key(signer.private_bytes, None)
        how: KeySerializationEncryption = NoEncryption()
        if self._passphrase:
            how = BestAvailableEncryption(self._passphrase)
        return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)

    def _decode(self, name: str, pem: bytes) -> CryptoSigner:
        encrypted = b"ENCRYPTED" in pem[:64]
        if encrypted and not self._passphrase:
            raise ConfigError(f"key {name}", "is encrypted", f"Set {PASSPHRASE_VARIABLE}")
        try:
            private = load_pem_private_key(pem, self._passphrase if encrypted else None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            why = "cannot be opened with this passphrase" if encrypted else "is not a usable key file"
            raise ConfigError(f"key {name}", why, f"Check {PASSPHRASE_VARIABLE} and the file") from error
        if not isinstance(private, EllipticCurvePrivateKey | Ed25519PrivateKey):
            raise ConfigError(f"key {name}", "is neither a P-256 nor an Ed25519 key")
        return CryptoSigner(private)


def _keyid(public: Path) -> str:
    return str(json.loads(public.read_text(encoding="utf-8"))["keyid"])


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist, durably."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
