"""The owner at work: keys, the local copy of the signed metadata and the server's, kept in step.

`repository` makes metadata and is pure; here it is fetched, uploaded, and saved once the server took it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel
from securesystemslib.signer import CryptoSigner

from wherry.api.repository import RepositoryInfo, RepositoryUpload
from wherry.errors import ConfigError, Conflict, InputError, NotFound
from wherry.identity import Digest
from wherry.metadata import Files, SignedImage, file_name, newest, verify_owner_set
from wherry_cli import repository
from wherry_cli.client import ServerClient
from wherry_cli.keystore import KeyStore
from wherry_cli.local_repository import LocalRepository, Standing, compare, names_of
from wherry_cli.packaging.package_file import PackagedImage, PackageFile
from wherry_cli.repository import ImageToSign, OwnerKeys
from wherry_cli.settings import Home

Say = Callable[[str], None]


class PublishedImage(BaseModel):
    """One image as it is signed now. `fresh` is False when it had been published before."""

    profile: str
    counter: int
    digest: Digest
    repository: str
    download_bytes: int
    fresh: bool


class Published(BaseModel):
    """What publishing came to."""

    model: str
    version: str
    images: list[PublishedImage]
    repository: RepositoryInfo


@dataclass(frozen=True, slots=True)
class Selection:
    """Which images of a package to sign, and which are signed already."""

    fresh: list[PackagedImage]
    known: list[SignedImage]


class Owner:
    """Signs and publishes for one operator.

    Args:
        home: holds keys and the local copy.
        client: the server.
        say: hears about progress and warnings.
    """

    def __init__(self, home: Home, client: ServerClient, say: Say) -> None:
        self._home = home
        self._client = client
        self._say = say
        self._keys = KeyStore.from_environment(home.keys)
        self._local = LocalRepository(home.repository)

    def init(self, roots: int, threshold: int, now: datetime) -> RepositoryInfo:
        """Make keys and the first metadata, and upload it. Safe to repeat after it was interrupted.

        Raises:
            Conflict: the server's metadata belongs to other keys.
            InputError: more signatures asked for than there are root keys.
        """
        if threshold > roots:
            raise InputError("--threshold", f"asks for {threshold} signatures of {roots} root keys")
        if self._local.load():
            return self._bring_up(self._same_roots(roots, threshold))
        info = self._client.repository()
        if info.root:
            return self._adopt(info)
        online = self._client.online_keys()
        # Keys from a first attempt that did not reach the server are used, not replaced.
        keys = self._keys.owner_keys(with_root=True) if self._keys.names() else self._keys.create_owner_keys(roots)
        return self._upload(repository.init_repository(keys, online, now, threshold))

    def _same_roots(self, roots: int, threshold: int) -> Standing:
        """What exists already, if it is what was asked for."""
        standing = self._standing()
        made = verify_owner_set(standing.files).root.roles["root"]
        if (len(made.keyids), made.threshold) != (roots, threshold):
            reason = f"exists already with {made.threshold} of {len(made.keyids)} root keys"
            raise Conflict("release metadata", reason, "Ask for the same numbers, or use another WHERRY_HOME")
        return standing

    def check(self) -> None:
        """Make sure that publishing can work, before long work is done for it.

        Raises:
            ConfigError: nobody ran `wherry keys init` for this server, or a key's passphrase is missing.
            NotFound: a key is not here.
        """
        self._usable_standing()
        self._owner_keys()

    def publish(self, package: PackageFile, now: datetime, again: bool = False) -> Published:
        """Sign a package's images and publish them; images that are published already stay as they are.

        Args:
            package: what `wherry package` made.
            now: signing time.
            again: sign all images under new counters, for going back to an older release.

        Raises:
            Conflict: the version was published with other images.
            ConfigError: nobody ran `wherry keys init` for this server.
        """
        standing = self._usable_standing()
        targets = repository.read_targets(standing.files)
        chosen = select_images(package, repository.released(standing.files), again)
        counter = repository.next_counter(targets, package.model)
        images = [
            ImageToSign(image.to_release_image(counter), image.digest, image.manifest_bytes) for image in chosen.fresh
        ]
        if images:
            files = repository.publish(standing.files, images, self._owner_keys(), now)
            info = self._upload({**standing.missing, **files})
        else:
            info = self._bring_up(standing)
        if chosen.known and max(found.image.counter for found in chosen.known) < counter - 1:
            self._say(
                f"Note: {package.model} {package.version} was published before, and newer ones since. Devices that had "
                "a newer one refuse it; to go back to it, publish it with --again."
            )
        shown = [_fresh(image, counter) for image in chosen.fresh] + [_known(image) for image in chosen.known]
        return Published(model=package.model, version=package.version, images=shown, repository=info)

    def revoke(self, model: str, version: str, profile: str | None, now: datetime) -> list[SignedImage]:
        """Withdraw a release's images for good.

        Raises:
            NotFound: no such release.
        """
        standing = self._usable_standing()
        chosen = find_images(repository.released(standing.files), model, version, profile)
        keys, current = self._owner_keys(), dict(standing.files)
        for digest in sorted({image.digest for image in chosen}):
            current |= repository.revoke(current, digest, keys, now)
        self._upload({**standing.missing, **_newest_signed(current)})
        return chosen

    def renew(self, now: datetime) -> RepositoryInfo:
        """Sign targets and snapshot again with new expiry dates."""
        standing = self._usable_standing()
        files = repository.publish(standing.files, [], self._owner_keys(), now)
        return self._upload({**standing.missing, **files})

    def renew_root(self, now: datetime) -> RepositoryInfo:
        """Sign a new root with the same keys and a new expiry date; needs enough of the root keys here.

        Raises:
            TrustError: too few of the root keys are here.
            ConfigError: nobody ran `wherry keys init` for this server.
        """
        standing = self._usable_standing()
        self._enough_roots(standing)
        keys = self._keys.owner_keys(with_root=True)
        files = repository.rotate_root(standing.files, keys, keys, now, keep_roots=True)
        return self._upload({**standing.missing, **files})

    def replace_keys(
        self, roles: Collection[str], now: datetime, roots: int | None = None, threshold: int | None = None
    ) -> RepositoryInfo:
        """Sign a new root that names new keys, and put these in use. Safe to repeat after it was interrupted.

        Args:
            roles: some of root, targets, snapshot and server; the server has made its new keys already.
            now: signing time.
            roots: with root: how many root keys there are to be; None keeps the number.
            threshold: with root: how many of them must sign a new root; None keeps the number.

        Raises:
            NotFound: too few of the present root keys are here.
            InputError: more signatures asked for than there will be root keys.
            Conflict: an interrupted replacement made another number of root keys.
        """
        standing = self._usable_standing()
        before, present = verify_owner_set(standing.files).root.roles["root"], self._enough_roots(standing)
        count, needed = roots or len(before.keyids), threshold or before.threshold
        if needed > count:
            raise InputError("--threshold", f"asks for {needed} signatures of {count} root keys")
        names = [f"root-{number}" for number in range(1, count + 1)] if "root" in roles else []
        made = self._keys.next_keys([*names, *(name for name in ("targets", "snapshot") if name in roles)])
        working = {name: made.get(name) or self._keys.load(name) for name in ("targets", "snapshot")}
        old = OwnerKeys(**working, root=present)
        new = OwnerKeys(**working, root=tuple(made[name] for name in names) or present)
        online = self._client.online_keys() if "server" in roles else None
        files = repository.rotate_root(standing.files, old, new, now, needed, online, keep_roots="root" not in roles)
        info = self._upload({**standing.missing, **files})
        self._take_over({**standing.files, **files})
        return info

    def _enough_roots(self, standing: Standing) -> tuple[CryptoSigner, ...]:
        """The root keys that are here, if they are enough to sign a new root."""
        role = verify_owner_set(standing.files).root.roles["root"]
        here = tuple(signer for signer in self._keys.root_keys() if signer.public_key.keyid in role.keyids)
        if len(here) < role.threshold:
            reason = f"are {len(here)} in {self._home.keys}; {role.threshold} of {len(role.keyids)} must sign"
            raise NotFound("root keys of this owner", reason, "Bring enough of the root key files here")
        return here

    def _take_over(self, files: Files) -> None:
        """Put next keys in use that the server has accepted, also when this was not seen at the time."""
        for name in self._keys.take_over(verify_owner_set(files).root.keys):
            self._say(f"Key {name} is a new one from now on.")

    def _standing(self) -> Standing:
        info = self._client.repository()
        served = {name: self._client.metadata(name) for name in names_of(info)}
        standing = compare(self._local.load(), served)
        if standing.warning:
            self._say(f"Warning: {standing.warning}.")
        return standing

    def _usable_standing(self) -> Standing:
        standing = self._standing()
        if not standing.files:
            raise ConfigError(
                "release metadata", "does not exist yet: nobody may sign for this server", "Run `wherry keys init`"
            )
        self._take_over(standing.files)
        return standing

    def _owner_keys(self) -> OwnerKeys:
        return self._keys.owner_keys()

    def _bring_up(self, standing: Standing) -> RepositoryInfo:
        return self._upload(standing.missing) if standing.missing else self._client.repository()

    def _adopt(self, info: RepositoryInfo) -> RepositoryInfo:
        """The server has metadata that this folder has not: fine if our keys made it (a lost reply)."""
        served = {name: self._client.metadata(name) for name in names_of(info)}
        owned = set(verify_owner_set(served).root.roles["root"].keyids)
        ours = set()
        if self._keys.names():
            ours = {signer.public_key.keyid for signer in self._keys.owner_keys(with_root=True).root}
        if not owned & ours:
            raise Conflict(
                f"server {self._client.server}",
                "has release metadata that was signed with other keys than those in " + str(self._home.keys),
                "Use the WHERRY_HOME that holds its owner's keys",
            )
        self._local.save(served)
        return info

    def _upload(self, files: Files) -> RepositoryInfo:
        texts = {name: data.decode() for name, data in files.items()}
        info = self._client.upload_repository(RepositoryUpload(files=texts))
        self._local.save(files)
        return info


def select_images(package: PackageFile, released: Iterable[SignedImage], again: bool) -> Selection:
    """Decide which images of a package need a signature.

    Raises:
        Conflict: a version is immutable, and this one has another image already.
    """
    newest_known: dict[str, SignedImage] = {}
    for found in sorted(released, key=lambda found: found.image.counter):
        if (found.image.model, found.image.version) == (package.model, package.version):
            newest_known[found.image.profile] = found
    for image in package.images:
        known = newest_known.get(image.profile)
        if known and known.digest != image.digest:
            raise Conflict(
                f"release {package.model} {package.version} for {image.profile}",
                "was published with another image before, and a published version never changes",
                "Give the new image a new --version",
            )
    if again:
        return Selection(list(package.images), [])
    fresh = [image for image in package.images if image.profile not in newest_known]
    known_images = [newest_known[image.profile] for image in package.images if image.profile in newest_known]
    return Selection(fresh, known_images)


def find_images(released: Iterable[SignedImage], model: str, version: str, profile: str | None) -> list[SignedImage]:
    """The images of a release.

    Raises:
        NotFound: there is none.
    """
    found = [
        item
        for item in released
        if (item.image.model, item.image.version) == (model, version) and profile in (None, item.image.profile)
    ]
    if not found:
        what = f"release {model} {version}" + (f" for {profile}" if profile else "")
        raise NotFound(what, "was never published", "See `wherry release list`")
    return found


def _newest_signed(files: Files) -> Files:
    names = [file_name(role, newest(files, role)) for role in ("targets", "snapshot")]
    return {name: files[name] for name in names}


def _fresh(image: PackagedImage, counter: int) -> PublishedImage:
    return PublishedImage(
        profile=image.profile, counter=counter, digest=image.digest, repository=image.repository,
        download_bytes=image.download_bytes, fresh=True,
    )  # fmt: skip


def _known(found: SignedImage) -> PublishedImage:
    return PublishedImage(
        profile=found.image.profile, counter=found.image.counter, digest=found.digest,
        repository=found.image.repository, download_bytes=found.image.download_bytes, fresh=False,
    )  # fmt: skip
