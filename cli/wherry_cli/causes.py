"""Why each error happens: what `wherry explain` says beside its sentence. One entry for each code of the error tree."""

from __future__ import annotations

CAUSES: dict[str, tuple[str, ...]] = {
    "wherry": (
        "A program met something that nobody foresaw: a defect",
        "A newer program sent an error that this one does not know",
    ),
    "input": (
        "An option or argument holds a value that cannot be used",
        "A file that was named is missing, is a folder or holds something else",
    ),
    "input.model": (
        "The file is cut off, is of another format, or was saved with external data that is not beside it",
        "The model uses an operator or type that the runtime does not know",
    ),
    "input.config": (
        "A configuration file has a mistyped name or a value of the wrong type",
        "Nobody logged in or initialised yet, so that a needed setting is missing",
    ),
    "contract": ("The two ends run versions of Wherry that do not understand each other",),
    "contract.malformed": (
        "A message is no JSON, lacks a field or holds one of the wrong type",
        "A proxy or another service answered in place of Wherry",
    ),
    "contract.schema": ("One end is newer than the other and speaks a format that the older does not know",),
    "trust": ("Signed metadata did not pass a check; the device goes on with what it has",),
    "trust.unsigned": (
        "The release was signed with other keys than those that the device trusts since its enrolment",
        "Fewer keys signed than the role needs",
    ),
    "trust.tampered": (
        "An image or a metadata file was changed in the registry, on the server or on its way",
        "A tag was pushed again and the digest is another one now",
    ),
    "trust.replayed": (
        "The broker delivered an old assignment late",
        "Somebody sends recorded assignments again",
        "The server's database was restored from a copy without raising its sequence",
    ),
    "trust.expired": (
        "The device's clock is wrong, often before its first time synchronisation",
        "Nobody signed the metadata again before its date (`wherry release renew`)",
    ),
    "trust.rolled_back": (
        "A rollout names a version that was signed before one that the device has had: packages are kept in "
        "$WHERRY_HOME/packages/MODEL-VERSION, sign the old one again with `wherry release publish PACKAGE --again`",
        "The server was restored from an old copy: restore the newest metadata (any owner's `wherry release renew`)",
        "Somebody offers metadata from before a withdrawal",
    ),
    "trust.wrong_device": (
        "A message came to the wrong topic: two devices share an identity, or the broker's rules were changed",
    ),
    "trust.wrong_profile": ("The assignment names an image that was built for other hardware",),
    "trust.revoked": ("The owner withdrew the image with `wherry release revoke`, after the rollout was started",),
    "trust.rejected": ("The same image failed its gates here before; it is not tried again by itself",),
    "fit": (
        "The release has no image for the device's profile",
        "The hardware has another L4T major, GPU generation, precision or less memory than the image needs",
    ),
    "admission": (
        "The disk has no room for the image beside the one that serves",
        "Not enough memory is free to run the candidate",
    ),
    "deployment": (
        "The container did not start, or its image could not be unpacked",
        "A step took longer than its deadline",
    ),
    "deployment.gate": (
        "The model did not become ready in time, or ended",
        "Its answers differ from the golden cases by more than they allow",
        "It was killed for using more memory than its limit: give it more with `wherry package --memory`, or make it "
        "smaller with `--quantize`",
        "It answers more slowly than its latency gate allows on this hardware",
    ),
    "deployment.phase": ("The agent came into a state that its own rules exclude: a defect",),
    "adapter": ("A program beside Wherry failed or cannot be reached",),
    "adapter.engine": (
        "The Docker engine is not running or hangs",
        "The user that runs the program may not use the engine's socket",
    ),
    "adapter.registry": (
        "The registry cannot be reached from here, or its certificate is not trusted",
        "The login is missing or has expired, or the repository does not exist",
    ),
    "adapter.build": (
        "mmdebstrap, pip or another tool is not installed",
        "A package could not be downloaded or does not exist for the platform",
    ),
    "adapter.link": (
        "The broker is down, its port is closed, or the certificate expired",
        "The device did not answer a question in time",
    ),
    "adapter.server": (
        "The server is down or restarting, or a firewall is in between",
        "The address is wrong, or another service answers there",
    ),
    "adapter.store": (
        "The disk is full or read-only",
        "The folder belongs to another user",
        "The database is damaged or locked by another program",
    ),
    "adapter.route": (
        "nftables is not installed, or the program lacks CAP_NET_ADMIN",
        "Another program holds the slot's port",
    ),
    "adapter.inference": (
        "The request names another input, type or shape than the model has",
        "The model failed on this input, or took too long",
    ),
    "identity": (
        "The join token was used before, has expired or is for another device",
        "The device's certificate expired while it was away for long, or the device was revoked",
    ),
    "not_allowed": (
        "The API token is mistyped or was revoked",
        "A device asked for something that belongs to another one",
    ),
    "not_found": ("The name is mistyped, or the thing was removed or never made",),
    "conflict": (
        "The thing changed in the meantime: a rollout has ended, a version is published already",
        "The device is offline, so that it cannot be asked",
    ),
}
