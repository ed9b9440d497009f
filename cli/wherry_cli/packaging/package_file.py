"""`package.json`: what packaging made, so that `wherry release publish` can sign it later, elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wherry.errors import ContractError, InputError
from wherry.identity import Digest, ModelName, ModelVersion, ProfileName
from wherry.release import Gate, Needs, Precision, ReleaseImage, RunSpec, Runtime, Signature, Stage
from wherry.schemas import load_json, parse_schema

PACKAGE_SCHEMA = 1
PACKAGE_FILE_NAME = "package.json"
PACKAGE_LIMIT = 4 * 1024 * 1024

LayerKind = Literal["base", "runtime", "serving", "picture", "page", "model", "golden", "packages", "agent", "other"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class ModelFigures(_Model):
    """A model file beside another: what it weighs and how long one run takes here (median)."""

    bytes: int = Field(ge=0)
    precision: Precision
    milliseconds: float = 0.0


class QuantizationReport(_Model):
    """What quantizing a model changed.

    Attributes:
        method: how it was done, in words; "unchanged" when the model was of that precision already.
        quantized: None when nothing was changed.
        samples: inputs that both models were compared on; made_up when nobody gave any.
        error: largest difference, relative to the output's largest value; cosine: the smallest similarity.
        agreement: share of the original's answers that stay, 0 to 1.
    """

    kind: Literal["fp16", "int8"]
    method: str
    original: ModelFigures = ModelFigures(bytes=0, precision="fp32")
    quantized: ModelFigures | None = None
    samples: int = 0
    made_up: bool = True
    error: float = 0.0
    cosine: float = 1.0
    agreement: float = 1.0

    @property
    def quantized_bytes(self) -> int:
        """Size of the model that is packaged."""
        return self.quantized.bytes if self.quantized else self.original.bytes


class PackagedLayer(_Model):
    """One layer of a packaged image.

    Attributes:
        size: bytes as transferred.
        unpacked: bytes of the tar archive inside.
    """

    kind: LayerKind
    digest: Digest
    size: int = Field(ge=0)
    unpacked: int = Field(ge=0)


class PackagedImage(_Model):
    """One image, pushed or saved: everything that its release needs but the counter.

    Attributes:
        digest: digest of the image manifest; the signed target's hash.
        manifest_bytes: length of the image manifest; the signed target's length.
        repository: registry and repository without tag; empty when the image was only saved to a folder.
    """

    model: ModelName
    version: ModelVersion
    stage: Stage = "prod"
    profile: ProfileName
    platform: str
    repository: str
    digest: Digest
    manifest_bytes: int = Field(ge=1)
    config_digest: Digest
    unpacked_bytes: int = Field(ge=0)
    download_bytes: int = Field(ge=0)
    layers: list[PackagedLayer] = []
    runtime: Runtime | Literal["agent"]
    provider: str
    precision: Precision
    signature: Signature | None = None
    needs: Needs = Needs()
    run: RunSpec = RunSpec()
    gates: list[Gate] = []
    breaking: bool = False

    def bytes_by_layer(self) -> dict[str, int]:
        """Bytes as transferred, by kind of layer, from the bottom up."""
        sizes: dict[str, int] = {}
        for layer in self.layers:
            sizes[layer.kind] = sizes.get(layer.kind, 0) + layer.size
        return sizes

    def to_release_image(self, counter: int, min_counter: int = 0, revoked: list[str] | None = None) -> ReleaseImage:
        """The signed form of this image under a counter.

        Raises:
            InputError: the image was never pushed to a registry, so no device could pull it.
        """
        if not self.repository:
            raise InputError(
                f"image of {self.model} {self.version} for {self.profile}",
                "was not pushed to a registry",
                "Package it again with --registry HOST:PORT",
            )
        return ReleaseImage(
            model=self.model,
            version=self.version,
            profile=self.profile,
            platform=self.platform,
            counter=counter,
            stage=self.stage,
            repository=self.repository,
            config_digest=self.config_digest,
            unpacked_bytes=self.unpacked_bytes,
            download_bytes=self.download_bytes,
            layers=self.bytes_by_layer(),
            runtime=self.runtime,
            provider=self.provider,
            precision=self.precision,
            signature=self.signature,
            needs=self.needs,
            run=self.run,
            gates=self.gates,
            breaking=self.breaking,
            min_counter=min_counter,
            revoked=revoked or [],
        )


class PackageFile(_Model):
    """What one `wherry package` run made: a model's version, one image per device profile.

    Attributes:
        quantization: what --quantize changed; None without it.
    """

    schema_: Annotated[int, Field(alias="schema")] = PACKAGE_SCHEMA
    model: ModelName
    version: ModelVersion
    stage: Stage = "prod"
    quantization: QuantizationReport | None = None
    images: list[PackagedImage] = Field(min_length=1)

    @model_validator(mode="after")
    def _images_belong_together(self) -> PackageFile:
        for image in self.images:
            if (image.model, image.version, image.stage) != (self.model, self.version, self.stage):
                raise ValueError(f"image for {image.profile} is of {image.model} {image.version} {image.stage}")
        profiles = [image.profile for image in self.images]
        if len(set(profiles)) != len(profiles):
            raise ValueError("a profile is named twice")
        return self

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n"


def read_package_file(path: Path) -> PackageFile:
    """Read `package.json`, or the one in a folder.

    Raises:
        InputError: there is no such file, or it is not a package file this program knows.
    """
    place = path / PACKAGE_FILE_NAME if path.is_dir() else path
    try:
        data = load_json(place.read_bytes(), f"package file {place}", PACKAGE_LIMIT)
        return parse_schema(PackageFile, data, f"package file {place}", PACKAGE_SCHEMA)
    except OSError as error:
        raise InputError(f"package file {place}", f"cannot be read ({error.strerror})") from error
    except ContractError as error:
        raise InputError(error.thing, error.reason, "Package the model again") from error
