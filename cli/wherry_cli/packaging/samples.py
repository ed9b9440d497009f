"""Samples of what a model will see: for calibration, and to compare a quantized model with its original.

A folder may hold `.npz` (arrays by input name), `.npy` (models with one input), golden cases as `.json`, and pictures
where a picture input is declared.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from wherry.elements import tensor_from_golden
from wherry.errors import InputError, MalformedMessage
from wherry.release import ModelFile, Signature, TensorSpec
from wherry_cli.packaging.golden import read_golden
from wherry_serving.arrays import fits_shape, to_array
from wherry_serving.pictures import Pictures
from wherry_serving.runtimes import DTYPES, Array

MOST = 512
"""Samples that are used; more make calibration slower and hardly better."""
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"})
_ARRAY_SUFFIXES = frozenset({".npz", ".npy", ".json"})
_LARGEST_FILE = 1 << 30
Sample = Mapping[str, Array]


def read_samples(folder: Path, file: ModelFile) -> list[Sample]:
    """The samples of a folder or a single file, in the order of their names.

    Args:
        folder: where they are.
        file: the model's signature and, for pictures, its declared picture input.

    Raises:
        InputError: there are none, or one does not fit the model; names the file.
    """
    thing = f"calibration samples {folder}"
    files = _files(folder, thing)
    if any(path.suffix.lower() in PICTURE_SUFFIXES for path in files) and file.picture is None:
        fix = "Declare the picture input with --picture, or give .npz files"
        raise InputError(thing, "holds pictures, and the model declares no picture input", fix)
    pictures = Pictures(file) if file.picture is not None else None
    samples: list[Sample] = []
    for path in files:
        samples += _read_file(path, file.signature, pictures)
        if len(samples) >= MOST:
            break
    if not samples:
        raise InputError(thing, "holds no samples", "Give .npz or .npy files, golden cases, or pictures")
    return samples[:MOST]


def _files(folder: Path, thing: str) -> list[Path]:
    if not folder.exists():
        raise InputError(thing, "does not exist", "Check the path")
    found = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    return [path for path in found if path.suffix.lower() in PICTURE_SUFFIXES | _ARRAY_SUFFIXES and path.is_file()]


def _read_file(path: Path, signature: Signature, pictures: Pictures | None) -> list[Sample]:
    thing = f"sample {path.name}"
    suffix = path.suffix.lower()
    if path.stat().st_size > _LARGEST_FILE:
        raise InputError(thing, "is larger than 1 GiB", "Split it into smaller files")
    if suffix == ".json":
        cases = [{item.name: to_array(tensor_from_golden(item)) for item in case.inputs} for case in read_golden(path)]
        return [_fitted(case, signature, thing) for case in cases]
    try:
        if suffix in PICTURE_SUFFIXES:
            return [pictures.inputs(path.read_bytes())] if pictures else []
        arrays = _arrays(path, signature)
    except MalformedMessage as error:
        raise InputError(thing, error.reason, error.fix) from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(thing, f"is not a numpy file ({str(error)[:120]})", "Write it with numpy.savez") from error
    return [_fitted(sample, signature, thing) for sample in _rows(arrays, signature)]


def _arrays(path: Path, signature: Signature) -> dict[str, Array]:
    # Pickled objects are code: they are not loaded.
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise MalformedMessage(path.name, f"holds one array, the model has the inputs {names}", "Give .npz files")
    return {signature.inputs[0].name: np.load(path, allow_pickle=False)}


def _rows(arrays: dict[str, Array], signature: Signature) -> Iterator[dict[str, Array]]:
    """One sample, or as many as the arrays have along a batch axis of size one or any."""
    specs = {spec.name: spec for spec in signature.inputs}
    batches = {len(array) for name, array in arrays.items() if name in specs and _is_batch(array, specs[name])}
    count = batches.pop() if len(batches) == 1 else 1
    for number in range(count):
        yield {
            name: array[number : number + 1] if name in specs and _is_batch(array, specs[name]) else array
            for name, array in arrays.items()
        }


def _is_batch(array: Array, spec: TensorSpec) -> bool:
    return array.ndim == len(spec.shape) > 0 and len(array) > 1 and spec.shape[0] in (-1, 1)


def _fitted(sample: Mapping[str, Array], signature: Signature, thing: str) -> Sample:
    """The sample in the model's datatypes and with a batch axis, or an error that names what is wrong."""
    fitted: dict[str, Array] = {}
    for spec in signature.inputs:
        array = sample.get(spec.name)
        if array is None:
            reason = f"lacks input {spec.name!r}, it has {', '.join(sample) or 'none'}"
            raise InputError(thing, reason, "Save it with numpy.savez(FILE, **{'INPUT NAME': array})")
        if array.ndim == len(spec.shape) - 1:
            array = array[None]
        if not fits_shape(array.shape, spec.shape):
            raise InputError(thing, f"has shape {list(array.shape)} for input {spec.name!r}, expected {spec.shape}")
        wanted = DTYPES[spec.datatype]
        if array.dtype.kind != wanted.kind and not np.can_cast(array.dtype, wanted, "same_kind"):
            raise InputError(thing, f"has {array.dtype} for input {spec.name!r}, expected {spec.datatype}")
        fitted[spec.name] = array.astype(wanted, copy=False)
    return fitted
