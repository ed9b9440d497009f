"""Every error Wherry raises on purpose, in one tree.

```
WherryError
├── InputError              a person or a file gave something unusable
│   ├── ModelError          the model file cannot be read or run
│   └── ConfigError         a setting or a configuration file is wrong
├── ContractError           bytes from the other end of a wire break the contract
│   ├── MalformedMessage
│   └── UnsupportedSchema   a schema version this program does not know
├── TrustError              the agent or the operator's tool refuses metadata
│   ├── Unsigned            not signed by the keys that must sign it
│   ├── Tampered            the bytes differ from what was signed
│   ├── Replayed            an assignment not newer than the last one accepted
│   ├── Expired             past its expiry date
│   ├── RolledBack          older than the high-water mark
│   ├── WrongDevice         an assignment made for another device
│   ├── WrongProfile        an image made for another device profile
│   ├── Revoked             the owner withdrew this image
│   └── Rejected            this device tried the image and it failed its gates
├── FitError                the release does not fit this device
├── AdmissionError          the device has not enough room for it now (disk, memory)
├── DeploymentError         a step of a deployment failed
│   ├── GateFailed          a health gate said no
│   └── PhaseError          an event that the phase table does not allow
├── AdapterError            a foreign system failed; wrapped where it is called
│   ├── EngineError         the container engine
│   ├── RegistryError       the OCI registry
│   ├── BuildError          a tool that packaging runs (mmdebstrap, pip)
│   ├── LinkError           the MQTT broker or the way to it
│   ├── ServerError         the server's HTTP API
│   ├── StoreError          a database or a file on disk
│   ├── RouteError          the packet filter or proxy that holds a slot's endpoint
│   └── InferenceError      a model server's answer
├── IdentityError           a certificate, key or join token is not usable
├── NotAllowed              the caller may not do this
├── NotFound                no such thing
└── Conflict                the thing is in a state that does not allow this
```

Each error names the thing, the reason and what to do next; its `code` is stable and is what
messages, dashboards and `wherry explain` show.
"""

from __future__ import annotations

from typing import ClassVar


class WherryError(Exception):
    """Base of every error that Wherry raises on purpose.

    Args:
        thing: what it is about, named as the reader knows it ("release vision 2").
        reason: why it failed, one clause.
        fix: what the reader can do next, one sentence without the full stop.
    """

    code: ClassVar[str] = "wherry"
    hint: ClassVar[str] = "Read the log of the program that printed this"

    def __init__(self, thing: str, reason: str, fix: str | None = None) -> None:
        self.thing = thing
        self.reason = reason
        self.fix = fix or self.hint
        super().__init__(thing, reason, self.fix)

    def __str__(self) -> str:
        return f"{self.thing}: {self.reason}. {self.fix}."

    def as_dict(self) -> dict[str, str]:
        """The error as the API, MQTT messages and `--json` show it."""
        return {"code": self.code, "thing": self.thing, "reason": self.reason, "fix": self.fix}


class InputError(WherryError):
    """A person or a file gave something unusable."""

    code = "input"
    hint = "Correct the value and run the command again"


class ModelError(InputError):
    """The model file cannot be read or run."""

    code = "input.model"
    hint = "Check that the file is a complete ONNX or TFLite model"


class ConfigError(InputError):
    """A setting or a configuration file is wrong."""

    code = "input.config"
    hint = "Correct the named setting"


class ContractError(WherryError):
    """Bytes from the other end of a wire break the contract."""

    code = "contract"
    hint = "Make sure that both ends run a supported version of Wherry"


class MalformedMessage(ContractError):
    """A message that cannot be parsed, or whose fields have the wrong type."""

    code = "contract.malformed"


class UnsupportedSchema(ContractError):
    """A message with a schema version that this program does not know."""

    code = "contract.schema"
    hint = "Upgrade the older of the two programs"


class TrustError(WherryError):
    """Release metadata or an assignment is refused; nothing was changed."""

    code = "trust"
    hint = "Publish the release again with the owner's keys"


class Unsigned(TrustError):
    """Not signed by the keys that must sign it."""

    code = "trust.unsigned"


class Tampered(TrustError):
    """The bytes differ from what was signed."""

    code = "trust.tampered"
    hint = "Find out who changed it on its way, then publish the release again"


class Replayed(TrustError):
    """An assignment that is not newer than the last one this device accepted."""

    code = "trust.replayed"
    hint = "Nothing to do if it was a late copy; otherwise look for a replaying broker"


class Expired(TrustError):
    """Metadata past its expiry date."""

    code = "trust.expired"
    hint = "Check the device's clock, then have the role's key holder sign again"


class RolledBack(TrustError):
    """Metadata older than what this device has already seen."""

    code = "trust.rolled_back"
    hint = (
        "To go back to an older release, sign it again with `wherry release publish PACKAGE --again`, "
        "then `wherry rollout start`"
    )


class WrongDevice(TrustError):
    """An assignment made for another device."""

    code = "trust.wrong_device"
    hint = "Look for a misrouted or hostile message; the device goes on as it was"


class WrongProfile(TrustError):
    """An image made for another device profile."""

    code = "trust.wrong_profile"
    hint = "Package the release for this device's profile"


class Revoked(TrustError):
    """The owner withdrew this image."""

    code = "trust.revoked"
    hint = "Roll out a release that is not revoked"


class Rejected(TrustError):
    """This device tried the image and it failed; it is not tried again by itself."""

    code = "trust.rejected"
    hint = "Release a corrected version, or clear the rejection with `wherry device retry`"


class FitError(WherryError):
    """The release does not fit this device; decided before anything is fetched."""

    code = "fit"
    hint = "Package the release for this device's profile, asking for no more than it has (`--memory`, `--quantize`)"


class AdmissionError(WherryError):
    """The device has not enough room now."""

    code = "admission"
    hint = "Free disk or memory on the device, then retry"


class DeploymentError(WherryError):
    """A step of a deployment failed; the known-good release serves on."""

    code = "deployment"
    hint = "Read the deployment's reason, correct the release and roll it out again"


class GateFailed(DeploymentError):
    """A health gate refused the candidate."""

    code = "deployment.gate"
    hint = "Correct the model or its golden cases and release a new version"


class PhaseError(DeploymentError):
    """An event that the phase table does not allow; nothing was changed."""

    code = "deployment.phase"
    hint = "Report this as a defect of the agent"


class AdapterError(WherryError):
    """A foreign system failed."""

    code = "adapter"


class EngineError(AdapterError):
    """The container engine failed or cannot be reached."""

    code = "adapter.engine"
    hint = "Check that the Docker engine runs and that this user may use its socket"


class RegistryError(AdapterError):
    """The OCI registry failed or cannot be reached."""

    code = "adapter.registry"
    hint = "Check the registry's address, its credentials and the network"


class BuildError(AdapterError):
    """A tool that packaging runs to build a layer failed or is missing."""

    code = "adapter.build"
    hint = "Read the tool's last words above, correct that and package again"


class LinkError(AdapterError):
    """The MQTT broker failed or cannot be reached."""

    code = "adapter.link"
    hint = "Check the broker's address and certificates and that its port is open"


class ServerError(AdapterError):
    """The Wherry server failed or cannot be reached."""

    code = "adapter.server"
    hint = "Check the server's address and that it runs"


class StoreError(AdapterError):
    """A database or a file on disk failed."""

    code = "adapter.store"
    hint = "Check free space and permissions of the named path"


class RouteError(AdapterError):
    """The packet filter or proxy that holds a slot's endpoint failed."""

    code = "adapter.route"
    hint = "Check that nftables is installed and that the agent has CAP_NET_ADMIN"


class InferenceError(AdapterError):
    """A model server refused a request or answered wrongly."""

    code = "adapter.inference"
    hint = "Compare the request with the model's metadata (GET /v2/models/NAME)"


class IdentityError(WherryError):
    """A certificate, key or join token is not usable."""

    code = "identity"
    hint = "Create a new join token with `wherry device token` and enrol again"


class NotAllowed(WherryError):
    """The caller may not do this."""

    code = "not_allowed"
    hint = "Use an API token with the needed scope"


class NotFound(WherryError):
    """No such thing."""

    code = "not_found"
    hint = "List what exists and check the spelling"


class Conflict(WherryError):
    """The thing is in a state that does not allow this."""

    code = "conflict"
    hint = "Look at its current state and decide again"


def walk_errors(root: type[WherryError] = WherryError) -> list[type[WherryError]]:
    """Every error class of this page, parents before children.

    A program may refine one for itself; its code, and so what a reader sees, stays the parent's.
    """
    found = [root]
    for child in root.__subclasses__():
        if child.__module__ == __name__:
            found.extend(walk_errors(child))
    return found
