"""`wherry device …`: enrol devices, see what they run, lock one out, and remove one that is gone."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import typer
from rich.text import Text

from wherry.api.base import DEFAULT_SLOT
from wherry.api.devices import DeviceChange, DeviceView, TokenCreated, TokenRequest
from wherry.errors import ConfigError, NotFound
from wherry.join import JoinToken
from wherry.questions import LOG_LINES
from wherry_cli.complete import complete_devices, complete_profiles
from wherry_cli.device_views import device_page, devices_table
from wherry_cli.diagnose_view import diagnose_page
from wherry_cli.inputs import checked
from wherry_cli.install_line import install_line
from wherry_cli.logs import choose_slot, follow_logs, show_logs
from wherry_cli.looking import now_utc
from wherry_cli.output import Json, Output
from wherry_cli.session import confirm, connected
from wherry_cli.settings import Home, find_home, load_settings
from wherry_cli.words import labels_text, parse_pairs

app = typer.Typer(
    help="Enrol devices, see what runs on them, lock one out, remove one that is gone.", no_args_is_help=True
)

Device = Annotated[str, typer.Argument(metavar="DEVICE", help="Id of the device.", autocompletion=complete_devices)]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; repeatable.")]
DeviceState = Literal["online", "offline", "drifting", "problem", "locked", "revoked"]
Profile = Annotated[
    str | None,
    typer.Option("--profile", help="Device profile (see `wherry profile list`).", autocompletion=complete_profiles),
]
_ANOTHER_ID = """\
If it may be in wrong hands, give its replacement another id: enrolled again under the old one,
its old certificate would count at the broker until it ends."""


@app.command()
def token(
    device: Device,
    profile: Profile = None,
    label: Labels = None,
    hours: Annotated[int, typer.Option(help="How long the token can be used.", min=1, max=720)] = 24,
    as_json: Json = False,
) -> None:
    """Make a single-use join token for a new device and print it."""
    out = Output(as_json)
    labels = parse_pairs(label or [], "--label")
    request = checked(TokenRequest, device=device, profile=profile, labels=labels, hours=hours)
    root_sha256 = root_fingerprint(find_home())
    with connected() as client:
        created = client.create_token(request)
        server = client.server
    line = JoinToken(
        server=server,
        device=created.device,
        secret=created.secret,
        ca_sha256=created.server_ca_sha256,
        root_sha256=root_sha256,
    ).encode()
    install = install_line(server, load_settings(find_home()).ca_file, line)
    result = {"device": created.device, "expires": created.expires.isoformat(), "join": line, "install": install}
    out.result(result, lambda: _show_line(out, created, line, install))


def _show_line(out: Output, created: TokenCreated, line: str, install: str) -> None:
    until = created.expires.astimezone().strftime("%Y-%m-%d %H:%M")
    if install:
        out.note(f"On a machine that is to become {created.device}, before {until}, this installs all it needs:\n")
        out.errors.print(Text(f"{install}\n"), soft_wrap=True)  # unfolded: it is pasted
    out.note(f"Where the agent is installed, once, before {until}: wherry-agent enroll TOKEN   with this join token:")
    # The token alone on standard output, unfolded: it is pasted, or piped into a file.
    out.console.print(Text(line), soft_wrap=True)


def root_fingerprint(home: Home) -> str:
    """Hex SHA-256 of the owner's first root metadata, which devices trust from their enrolment on.

    Raises:
        ConfigError: this folder holds no owner's metadata.
    """
    path = home.repository / "1.root.json"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"the owner's root metadata {path}",
            f"cannot be read ({error.strerror})",
            "Run `wherry keys init` first, or use the WHERRY_HOME that has the keys",
        ) from error


@app.command("list")
def list_devices(
    profile: Profile = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Only with this label; repeatable.")
    ] = None,
    online: Annotated[
        bool | None, typer.Option("--online/--offline", metavar="", help="Only those that are there, or are not.")
    ] = None,
    state: Annotated[DeviceState | None, typer.Option("--state", help="Only those in this state.")] = None,
    search: Annotated[
        str | None, typer.Option("--search", metavar="TEXT", help="Only ids that hold this text.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show every device: online, what it runs, what it should run."""
    out = Output(as_json)
    labels = [f"{key}={value}" for key, value in parse_pairs(label or [], "--label").items()]
    chosen = {"profile": profile, "label": labels, "state": state, "search": search}
    if online is not None:
        chosen["online"] = "true" if online else "false"
    wanted = {name: value for name, value in chosen.items() if value}
    with connected() as client:
        found = list(client.devices(**wanted))
    out.result({"items": found}, lambda: devices_table(found, now_utc(), bool(wanted)))


@app.command()
def show(device: Device, as_json: Json = False) -> None:
    """Show one device: slots, drift, problem and last deployments."""
    out = Output(as_json)
    with connected() as client:
        view = client.device(device)
        history = client.deployments(device, limit=8)
    result = {**view.model_dump(mode="json", by_alias=True), "deployments": history}
    out.result(result, lambda: device_page(view, history, now_utc()))


@app.command("label")
def label_device(
    device: Device,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-…", help="Set KEY, or drop it with KEY-.")],
    as_json: Json = False,
) -> None:
    """Set or drop labels of a device; the others stay."""
    out = Output(as_json)
    dropped = {text[:-1] for text in labels if text.endswith("-") and "=" not in text}
    added = parse_pairs([text for text in labels if text.removesuffix("-") not in dropped], "label")
    with connected() as client:
        kept = {key: value for key, value in client.device(device).labels.items() if key not in dropped}
        view = client.change_device(device, checked(DeviceChange, labels={**kept, **added}))
    out.result(view, lambda: Text(f"{view.id}: {labels_text(view.labels) or 'no labels'}"))


@app.command()
def revoke(
    device: Device,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Lock a device out: no assignments, no renewal, no messages. It keeps serving what it has."""
    out = Output(as_json)
    confirm(f"Lock out device {device} for good?", yes, out)
    with connected() as client:
        client.revoke_device(device)
    out.result({"device": device, "revoked": True}, lambda: Text(f"{device} is locked out.\n{_ANOTHER_ID}"))


@app.command()
def remove(
    device: Device,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Although it is online.")] = False,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Take a device that is gone for good out of the fleet: keys, history, open deployments.

    What it did stays in `wherry audit`. A new join token brings it back as a new device.
    """
    out = Output(as_json)
    confirm(f"Remove device {device} and its history for good?", yes, out)
    with connected() as client:
        client.remove_device(device, force)
    result = {"device": device, "removed": True}
    out.result(result, lambda: Text(f"{device} is removed. Its past: wherry audit --thing {device}\n{_ANOTHER_ID}"))


@app.command()
def retry(
    device: Device,
    slot: Annotated[str, typer.Option("--slot", help="Slot whose release failed.")] = DEFAULT_SLOT,
    digest: Annotated[str | None, typer.Option("--digest", help="Image digest; default: the desired one.")] = None,
    as_json: Json = False,
) -> None:
    """Let a device try an image again that it rejected."""
    out = Output(as_json)
    with connected() as client:
        chosen = digest or desired_digest(client.device(device), slot)
        client.retry_device(device, slot, chosen)
    result = {"device": device, "slot": slot, "digest": chosen}
    out.result(result, lambda: Text(f"{device} may try {chosen[:19]}… again in slot {slot}."))


def desired_digest(view: DeviceView, slot: str) -> str:
    """The image that a slot should run.

    Raises:
        NotFound: nothing is desired there.
    """
    if slot not in view.desired:
        known = ", ".join(sorted(view.desired)) or "none"
        raise NotFound(f"slot {slot} of {view.id}", "has no desired release", f"Slots with one: {known}")
    return view.desired[slot].digest


@app.command()
def poll(device: Device, as_json: Json = False) -> None:
    """Ask a device to fetch its assignment from the server now."""
    out = Output(as_json)
    with connected() as client:
        online = client.device(device).online
        client.poll_device(device)
    when = "it answers in a moment" if online else "it is offline, so it does that when it comes back"
    out.result(
        {"device": device, "polled": True, "online": online},
        lambda: Text(f"Asked {device} to fetch its assignment now; {when}."),
    )


@app.command()
def clear(
    device: Device,
    slot: Annotated[str, typer.Argument(help="Slot to empty.")],
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Empty a slot of a device: its model stops serving."""
    out = Output(as_json)
    confirm(f"Stop the model in slot {slot} of {device}?", yes, out)
    with connected() as client:
        client.unassign(device, slot)
    out.result({"device": device, "slot": slot, "cleared": True}, lambda: Text(f"{device} will empty slot {slot}."))


@app.command("logs")
def show_device_logs(
    device: Device,
    slot: Annotated[str | None, typer.Argument(help="Slot; default: main, or the only one.")] = None,
    following: Annotated[bool, typer.Option("--follow", "-f", metavar="", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="The newest so many.", min=1, max=LOG_LINES)] = 100,
    since: Annotated[str | None, typer.Option("--since", metavar="SPAN", help="Only the last 90s, 15m, 1h.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a slot's container wrote, asked from the device itself. With -f --json, a document a line."""
    out = Output(as_json)
    with connected() as client:
        chosen = slot or choose_slot(client, device)
        if following:
            follow_logs(client, device, chosen, lines, since, out)
        else:
            show_logs(client, device, chosen, lines, since, out)


@app.command()
def diagnose(device: Device, as_json: Json = False) -> None:
    """Have a device examine itself and say what to mend; the exit code is 1 when a check failed."""
    out = Output(as_json)
    with connected() as client:
        answer = client.diagnose(device)
    out.result(answer, lambda: diagnose_page(device, answer))
    if any(check.level == "error" for check in answer.checks):
        raise typer.Exit(1)
