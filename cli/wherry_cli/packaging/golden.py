"""Golden cases: read those that are given, or make some from the model's signature, and run the model on them.

The functions that run a model take a `wherry_serving` runtime and are called in a process of their own (see
`wherry_cli.packaging.child`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wherry.elements import Tensor, tensor_from_golden, tensor_to_golden
from wherry.errors import ContractError, InferenceError, InputError, MalformedMessage, ModelError, WherryError
from wherry.golden import compare
from wherry.release import GOLDEN_SCHEMA, TOLERANCES, GoldenCase, GoldenFile, Precision, TensorSpec, fraction
from wherry.schemas import load_json, parse_schema
from wherry.tensors import tensor_from_json
from wherry_serving.arrays import check_inputs, from_array, to_array
from wherry_serving.runtimes import DTYPES, Runtime

FILE_LIMIT = 64 * 1024 * 1024
CASES = 3
_SIZES = (16, 32, 64, 224, 1)
"""Sizes tried for dynamic dimensions; the first dimension, the batch, is 1."""
_INTEGER_ENDS = (100, 2)
"""Whole numbers are drawn below these: token ids first, then flags, which an embedding of two rows also takes."""
_LARGE_CASE = 4 * 1024 * 1024

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to make inputs.

    Attributes:
        size: of dynamic dimensions.
        integer_end: whole numbers are below it.
        last_only: only a last dimension gets the size, others 1 (recurrent state has its batch in the middle).
    """

    size: int
    integer_end: int
    last_only: bool = False


def golden_bytes(model: str, cases: Sequence[GoldenCase]) -> bytes:
    """golden.json, the same bytes for the same cases."""
    return GoldenFile(model=model, cases=list(cases)).model_dump_json(by_alias=True).encode()


# -- given cases


def read_golden(path: Path) -> list[GoldenCase]:
    """Golden cases from a file, or from every .json file of a folder.

    A file is a golden.json, or one case in the protocol's words: {"inputs": [{"name", "datatype", "shape", "data"}],
    "outputs": […]}. A case without outputs gets them from the model.

    Raises:
        InputError: unreadable, of another form, or without a case.
    """
    thing = f"golden cases {path}"
    try:
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        found = [case for file in files for case in _read_file(file)]
    except OSError as error:
        raise InputError(thing, f"cannot be read ({error.strerror})") from error
    except ContractError as error:
        raise InputError(thing, f"{error.thing} {error.reason}") from error
    if not found:
        raise InputError(thing, "holds no case", "Give a golden.json or a folder of .json files")
    names = [case.name for case in found]
    if len(set(names)) != len(names):
        raise InputError(thing, "names a case twice")
    return found


def _read_file(file: Path) -> list[GoldenCase]:
    document = load_json(file.read_bytes(), file.name, FILE_LIMIT)
    if isinstance(document, dict) and "cases" in document:
        return parse_schema(GoldenFile, document, file.name, GOLDEN_SCHEMA).cases
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise MalformedMessage(file.name, "is neither a golden.json nor a case with inputs")
    return [
        GoldenCase(
            name=str(document.get("name") or file.stem),
            inputs=_given(document["inputs"], f"input of {file.name}"),
            outputs=_given(document.get("outputs") or [], f"output of {file.name}"),
        )
    ]


def _given(items: list[Any], kind: str) -> list[Any]:
    return [tensor_to_golden(tensor_from_json(item, kind)) for item in items]


# -- made cases


def concrete_shape(spec: TensorSpec, shapes: Shapes, recipe: Recipe) -> tuple[int, ...]:
    """A shape without dynamic dimensions.

    Raises:
        InputError: the shape given for this input does not fit its declaration.
    """
    given = shapes.get(spec.name)
    if given is None:
        last = len(spec.shape) - 1
        ones = {0} | (set(range(last)) if recipe.last_only else set())
        return tuple(want if want >= 0 else (1 if at in ones else recipe.size) for at, want in enumerate(spec.shape))
    fits = len(given) == len(spec.shape) and all(w in (-1, g) for g, w in zip(given, spec.shape, strict=False))
    if not fits:
        raise InputError(f"--shape {spec.name}={','.join(map(str, given))}", f"does not fit {spec.shape}")
    return tuple(given)


def make_array(spec: TensorSpec, shape: Sequence[int], recipe: Recipe, random: np.random.Generator) -> Any:
    """An input with sensible values for its datatype."""
    kind = DTYPES[spec.datatype]
    if spec.datatype == "BYTES":
        array = np.empty(int(np.prod(shape)), dtype=object)
        array[:] = [f"wherry {number}".encode() for number in random.integers(0, 1000, array.size)]
        return array.reshape(shape)
    if kind.kind == "f":
        return random.random(shape).astype(kind)
    if kind.kind == "b":
        return random.integers(0, 2, shape).astype(kind)
    if kind.itemsize == 1:
        bounds = np.iinfo(kind)
        return random.integers(bounds.min, bounds.max + 1, shape).astype(kind)
    return random.integers(0, recipe.integer_end, shape).astype(kind)


def _recipes(specs: Sequence[TensorSpec], shapes: Shapes) -> Iterator[Recipe]:
    dynamic = any(-1 in spec.shape[1:] and spec.name not in shapes for spec in specs)
    whole = any(DTYPES[spec.datatype].kind in "iu" and DTYPES[spec.datatype].itemsize > 1 for spec in specs)
    sizes = _SIZES if dynamic else _SIZES[:1]
    ends = _INTEGER_ENDS if whole else _INTEGER_ENDS[:1]
    for last_only, size, end in itertools.product((False, True) if dynamic else (False,), sizes, ends):
        yield Recipe(size, end, last_only)


def make_cases(runtime: Runtime, shapes: Shapes, count: int = CASES, seed: int = 0) -> list[GoldenCase]:
    """Cases made from the model's signature; the same for the same model and seed.

    Raises:
        ModelError: the model takes none of the inputs tried; the reason is its last word.
        InputError: `shapes` names an input that does not exist or a shape that does not fit.
    """
    specs = runtime.signature.inputs
    unknown = sorted(set(shapes) - {spec.name for spec in specs})
    if unknown:
        raise InputError(f"--shape {unknown[0]}", f"is no input, these are: {', '.join(spec.name for spec in specs)}")
    problem: WherryError | None = None
    for recipe in _recipes(specs, shapes):
        try:
            return list(_try_recipe(runtime, recipe, shapes, count, seed))
        except (MalformedMessage, InferenceError) as error:
            problem = error
    wanted = " ".join(f"--shape {spec.name}={_words(spec.shape)}" for spec in specs if -1 in spec.shape)
    fix = f"Give the sizes it takes, as in {wanted}" if wanted else "Give recorded cases with --golden"
    raise ModelError(
        "golden cases", f"the model refuses made-up inputs ({problem.reason if problem else 'none tried'})", fix
    )


def _words(shape: Sequence[int]) -> str:
    return ",".join(str(size) if size >= 0 else "N" for size in shape)


def _try_recipe(runtime: Runtime, recipe: Recipe, shapes: Shapes, count: int, seed: int) -> Iterator[GoldenCase]:
    for number in range(count):
        random = np.random.default_rng([seed, number])
        arrays = {
            spec.name: make_array(spec, concrete_shape(spec, shapes, recipe), recipe, random)
            for spec in runtime.signature.inputs
        }
        inputs = [from_array(name, array) for name, array in arrays.items()]
        yield record(runtime, f"made-{number + 1}", inputs)
        if number == 0 and sum(len(tensor.data) for tensor in inputs) > _LARGE_CASE:
            return


# -- running cases


def answer(runtime: Runtime, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The model's outputs for a case's inputs.

    Raises:
        MalformedMessage: the inputs are not what the model takes.
        InferenceError: the runtime failed.
    """
    check_inputs({spec.name: spec for spec in runtime.signature.inputs}, inputs)
    names = [spec.name for spec in runtime.signature.outputs]
    arrays = runtime.run({tensor.name: to_array(tensor) for tensor in inputs}, names)
    # Copied: some runtimes reuse the memory of their outputs.
    return [from_array(name, np.array(array)) for name, array in zip(names, arrays, strict=True)]


def record(runtime: Runtime, name: str, inputs: Sequence[Tensor]) -> GoldenCase:
    """A case with the outputs that the model gives now."""
    outputs = answer(runtime, inputs)
    return GoldenCase(
        name=name,
        inputs=[tensor_to_golden(tensor) for tensor in inputs],
        outputs=[tensor_to_golden(tensor) for tensor in outputs],
    )


def check_given(runtime: Runtime, cases: Sequence[GoldenCase], precision: Precision) -> list[GoldenCase]:
    """Given cases, checked against the model and completed where they have no outputs.

    Raises:
        InputError: a case's inputs do not fit the model, or the model answers otherwise; names the case.
    """
    tolerance, cosine = (fraction(text) for text in TOLERANCES[precision])
    checked = []
    for case in cases:
        thing = f"golden case {case.name}"
        try:
            inputs = [tensor_from_golden(tensor) for tensor in case.inputs]
            expected = [tensor_from_golden(tensor) for tensor in case.outputs]
            recorded = record(runtime, case.name, inputs)
        except (MalformedMessage, InferenceError) as error:
            raise InputError(thing, f"does not fit the model ({error.thing} {error.reason})") from error
        if not expected:
            checked.append(recorded)
            continue
        observed = [tensor_from_golden(tensor) for tensor in recorded.outputs]
        found = compare(expected, observed, tolerance, cosine, argmax=True)
        if not found.ok:
            fix = "Record the case again, or package the model that it was recorded from"
            raise InputError(thing, f"is not what this model answers ({found.detail})", fix)
        checked.append(case)
    return checked


def telling(cases: Sequence[GoldenCase]) -> bool:
    """Whether the cases differ in their outputs: noise that always gives the same answer proves little."""
    return len({tuple(tensor.raw for tensor in case.outputs) for case in cases}) > 1


def repeats(runtime: Runtime, cases: Sequence[GoldenCase], precision: Precision) -> bool:
    """Whether the model gives each case's outputs again, whatever ran before: it is neither stateful nor random."""
    tolerance, cosine = (fraction(text) for text in TOLERANCES[precision])
    for case in reversed(cases):
        observed = answer(runtime, [tensor_from_golden(tensor) for tensor in case.inputs])
        expected = [tensor_from_golden(tensor) for tensor in case.outputs]
        if not compare(expected, observed, tolerance, cosine, argmax=True).ok:
            return False
    return True
