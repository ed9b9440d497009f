"""`wherry push`: package, push, sign, publish and roll out in one go."""

from __future__ import annotations

from typing import Any

from wherry.api.base import DEFAULT_SLOT
from wherry.api.rollouts import RolloutRequest, RolloutView, Selector
from wherry.errors import InputError
from wherry_cli.client import ServerClient
from wherry_cli.follow import Timeout, Watch, follow
from wherry_cli.inputs import checked
from wherry_cli.looking import now_utc
from wherry_cli.options import PackageRequest, takes_package_options
from wherry_cli.output import Json, Output
from wherry_cli.package import make_package, quantization_table
from wherry_cli.release import published_page
from wherry_cli.rollout import Slot, To, begin, started_page
from wherry_cli.selectors import parse_selector, selector_text, selects, uncovered
from wherry_cli.session import connected
from wherry_cli.settings import find_home


@takes_package_options
def push(
    request: PackageRequest,
    to: To,
    slot: Slot = None,
    watching: Watch = False,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Bring a model to devices in one go: package, push, sign, publish, roll out."""
    out = Output(as_json)
    selector = parse_selector(to)
    rollout = checked(
        RolloutRequest, model=request.name, version=request.version, slot=slot or DEFAULT_SLOT, selector=selector
    )
    if not request.registry:
        raise InputError("--registry", "is missing, and devices pull from a registry", "Name one here or at login")
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without

    with connected() as client:
        owner = Owner(find_home(), client, out.note)
        owner.check()
        _check_devices(client, rollout.selector, request.profiles, out)
        made, folder = make_package(request, out)
        if not out.as_json:
            out.console.print(*quantization_table(made), sep="\n", end="")
        published = owner.publish(made, now_utc())
        if not out.as_json:
            out.console.print(published_page(published))
        view = begin(client, rollout, out)

        def result(ended: RolloutView) -> dict[str, Any]:
            return {"package": str(folder / "package.json"), "published": published, "rollout": ended}

        if watching:
            out.gap()
            follow(client, view, out, timeout, result)
        else:
            out.result(result(view), lambda: started_page(view))


def _check_devices(client: ServerClient, selector: Selector, profiles: list[str], out: Output) -> None:
    """Say before the long work that nobody, or not everybody, would get the release.

    Raises:
        InputError: no device is selected, or none of the profiles packaged for.
    """
    chosen = [device for device in client.devices() if selects(selector, device)]
    if not chosen:
        what = f"--to {selector_text(selector)}"
        raise InputError(what, "selects no device", "See `wherry device list`; enrol one with `wherry device token`")
    had = {device.profile for device in chosen}
    if not had & set(profiles):
        asked = f"--profile {', '.join(profiles)}"
        reason = f"fits no selected device: {len(chosen)} selected, of profile {', '.join(sorted(had))}"
        fix = "Package it for their profile, or use `wherry package` and `wherry release publish` for devices to come"
        raise InputError(asked, reason, fix)
    unused = sorted(set(profiles) - had)
    if unused:
        out.note(f"Note: no selected device has profile {', '.join(unused)} yet.")
    missing = uncovered(chosen, profiles)
    if missing:
        out.note(f"Warning: selected but not packaged for: {'; '.join(missing)}.")
