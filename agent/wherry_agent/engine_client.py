"""The docker SDK, made ready: the only importer of docker, which `containers` and `images` speak through."""

from __future__ import annotations

import sys
import tarfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from wherry.errors import EngineError

# requests, below the SDK, works without its library that guesses encodings; the engine speaks UTF-8, and the
# library costs a device 3 MB of memory.
sys.modules.setdefault("charset_normalizer", None)  # type: ignore[arg-type]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import docker
    import docker.errors
    import docker.types
    import requests

__all__ = ["docker", "wrapped"]


@contextmanager
def wrapped(thing: str) -> Iterator[None]:
    """Foreign exceptions become EngineError."""
    try:
        yield
    except docker.errors.APIError as error:
        raise EngineError(thing, str(error.explanation or error).strip()[:400]) from error
    except docker.errors.DockerException as error:
        raise EngineError(thing, f"the engine cannot be reached ({_cause(error)})") from error
    except (requests.exceptions.RequestException, OSError) as error:
        raise EngineError(thing, f"the engine does not answer ({_cause(error)})") from error
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise EngineError(thing, f"the engine answered what nobody understands ({error!r})") from error


def _cause(error: BaseException) -> str:
    """The innermost reason of a nest of exceptions."""
    text = str(error)
    return text.rpartition("(")[2].rstrip(")") if text.count("(") > 2 else text[:200]
