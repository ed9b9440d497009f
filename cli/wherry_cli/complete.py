"""What the shell offers behind the TAB key. It asks the server briefly, and is silent when that fails."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from wherry_cli.client import ServerClient

MOST = 200
"""Suggestions; a screen holds no more."""
PATIENCE_SECONDS = 1.5


def _from_server(ask: Callable[[ServerClient], Iterable[str]], incomplete: str) -> list[str]:
    from wherry_cli.client import open_client  # all of this happens at a key press: load what is needed only
    from wherry_cli.settings import find_home, load_settings

    try:
        client = open_client(load_settings(find_home()), hurry=PATIENCE_SECONDS)
        try:
            found = (name for name in ask(client) if name.startswith(incomplete))
            return list(dict.fromkeys(itertools.islice(found, MOST)))
        finally:
            client.close()
    except Exception:
        return []  # a traceback in the middle of a command line helps nobody


def complete_devices(incomplete: str) -> list[str]:
    """Ids of devices."""
    return _from_server(
        lambda client: (view.id for view in client.devices(search=incomplete or None, limit=MOST)), incomplete
    )


def complete_models(incomplete: str) -> list[str]:
    """Models with a release."""
    return _from_server(lambda client: (view.model for view in client.releases()), incomplete)


def complete_versions(ctx: typer.Context, incomplete: str) -> list[str]:
    """Versions of the model that stands before."""
    model = ctx.params.get("model")
    return _from_server(lambda client: (view.version for view in client.releases(model)), incomplete)


def complete_rollouts(incomplete: str) -> list[tuple[str, str]]:
    """Numbers of the newest rollouts, with what they are."""
    texts: dict[str, str] = {}

    def ask(client: ServerClient) -> Iterable[str]:
        for view in client.rollouts():
            texts[str(view.id)] = f"{view.label}, {view.state}"
        return texts

    return [(number, texts[number]) for number in _from_server(ask, incomplete)]


def complete_profiles(incomplete: str) -> list[tuple[str, str]]:
    """Device profiles, which need no server."""
    from wherry.errors import WherryError
    from wherry.profile import load_profiles

    try:
        found = load_profiles().values()
    except WherryError:
        return []
    return [(profile.name, profile.title) for profile in found if profile.name.startswith(incomplete)]


def complete_selection(incomplete: str) -> list[str]:
    """`--to`: first the kind of condition, then its value."""
    kind, sign, value = incomplete.partition("=")
    if sign and kind == "device":
        return [f"device={name}" for name in complete_devices(value)]
    if sign and kind == "profile":
        return [f"profile={name}" for name, _ in complete_profiles(value)]
    return [text for text in ("all", "label=", "profile=", "device=") if text.startswith(incomplete)]


def complete_codes(incomplete: str) -> list[tuple[str, str]]:
    """Error codes with their sentences."""
    from wherry.errors import walk_errors

    return [
        (kind.code, (kind.__doc__ or "").partition("\n")[0])
        for kind in walk_errors()
        if kind.code.startswith(incomplete)
    ]


def completion(
    ctx: typer.Context,
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish", help="Which shell.")],
) -> None:
    """Print the script that teaches a shell to complete `wherry` with TAB; nothing is written.

    bash: wherry completion bash > ~/.local/share/bash-completion/completions/wherry

    zsh: wherry completion zsh > a folder of $fpath, as _wherry

    fish: wherry completion fish > ~/.config/fish/completions/wherry.fish
    """
    from typer.completion import shell_complete

    root = ctx.find_root()
    shell_complete(root.command, {}, root.info_name or "wherry", "_WHERRY_COMPLETE", f"source_{shell}")
