"""The serving layer: the packages `wherry` and `wherry_serving`, as source."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import wherry
import wherry_serving
from wherry.release import APP_FOLDER
from wherry_cli.packaging.layers import folder_entries, make_layer
from wherry_cli.packaging.store import Layer, Store


def _is_source(path: PurePosixPath) -> bool:
    return path.suffix == ".py" and "__pycache__" not in path.parts


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
