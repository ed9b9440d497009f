"""The serving layer: the packages `wherry` and `wherry_serving`, as source."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import wherry
import wherry_serving
from wherry.release import APP_FOLDER
from wherry_cli.packaging.layers import folder_entries, make_layer
from wherry_cli.packaging.store import Layer, Store

PAGE = "page"
"""Folder of wherry_serving with the page on which a developer tries a model."""


def _is_source(path: PurePosixPath) -> bool:
    return path.suffix == ".py" and "__pycache__" not in path.parts and path.parts[0] != PAGE


def serving_layer(store: Store) -> Layer:
    """The layer with the model server that is installed here.

    Raises:
        StoreError: the store cannot be written.
    """
    entries = []
    for package in (wherry, wherry_serving):
        folder = Path(str(package.__file__)).parent
        entries += folder_entries(folder, f"{APP_FOLDER}/{folder.name}", _is_source)
    return make_layer("serving", entries, store)


def page_layer(store: Store) -> Layer | None:
    """The layer with the interactive page, for images of stage dev alone; None when this installation has none.

    Raises:
        StoreError: the store cannot be written.
    """
    folder = Path(str(wherry_serving.__file__)).parent / PAGE
    entries = folder_entries(
        folder, f"{APP_FOLDER}/wherry_serving/{PAGE}", lambda path: "__pycache__" not in path.parts
    )
    return make_layer("page", entries, store) if entries else None
