"""`python -m wherry_agent.tuf_client`: our TUF client as theupdateframework/tuf-conformance drives it.

```
--metadata-dir D init ROOT
--metadata-dir D --metadata-url U refresh
--metadata-dir D --metadata-url U --target-name N --target-base-url B --target-dir T download
```
Exit code 0 or 1. It is the agent's own updater and fetcher, with one difference: files that were verified before a
refresh failed are written, as the TUF workflow says; the agent waits for the whole set and its high-water marks.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import DownloadError, RepositoryError

from wherry.errors import WherryError
from wherry.metadata import ROOT_LIMIT
from wherry_agent.tuf_files import read_bounded, write_durably
from wherry_agent.tuf_updater import BoundedFetcher, StagedUpdater


def main(arguments: list[str] | None = None) -> int:
    """Run one command."""
    options = _parser().parse_args(arguments)
    commands = {"init": _init, "refresh": _refresh, "download": _download}
    try:
        commands[options.command](options)
    except (RepositoryError, DownloadError, OSError, ValueError, LookupError, WherryError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


def _init(options: argparse.Namespace) -> None:
    write_durably(options.metadata_dir / "root.json", read_bounded(options.root, ROOT_LIMIT))


def _refresh(options: argparse.Namespace) -> None:
    updater = _updater(options)
    try:
        updater.refresh()
    finally:
        updater.commit()


def _download(options: argparse.Namespace) -> None:
    updater = _updater(options)
    try:
        target = updater.get_targetinfo(options.target_name)
    finally:
        updater.commit()
    if target is None:
        raise LookupError(f"no target {options.target_name!r}")
    if updater.find_cached_target(target) is None:
        updater.download_target(target)


def _updater(options: argparse.Namespace) -> StagedUpdater:
    root = read_bounded(options.metadata_dir / "root.json", ROOT_LIMIT)
    updater = StagedUpdater(options.metadata_dir, options.metadata_url, BoundedFetcher(None), root, _now())
    if options.target_dir is not None:
        updater.use_targets(options.target_dir, options.target_base_url)
    return updater


def _now() -> datetime:
    return datetime.now(UTC)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="wherry_agent.tuf_client", description="TUF client for conformance tests")
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name")
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    return parser


if __name__ == "__main__":
    sys.exit(main())
