"""`wherry push`: package, push, sign, publish and roll out in one go."""

from __future__ import annotations

from typing import Any

from wherry.api import DEFAULT_SLOT, RolloutRequest, RolloutView
from wherry.errors import InputError
from wherry_cli.follow import Timeout, Watch, follow, now_utc
from wherry_cli.inputs import checked
from wherry_cli.output import Json, Output
from wherry_cli.package import (
    FromImage,
    Golden,
    ModelPath,
    Name,
    OutputFolder,
    Profiles,
    Registry,
    Shapes,
    StageName,
    Version,
    make_package,
    read_request,
)
from wherry_cli.release import published_page
from wherry_cli.rollout import Slot, To, started_page
from wherry_cli.selectors import parse_selector
from wherry_cli.session import connected
from wherry_cli.settings import find_home


def push(
    name: Name,
    version: Version,
    profile: Profiles,
    to: To,
    model: ModelPath = None,
    slot: Slot = DEFAULT_SLOT,
    watching: Watch = False,
    timeout: Timeout = None,
    registry: Registry = None,
    golden: Golden = None,
    shape: Shapes = None,
    stage: StageName = "prod",
    from_image: FromImage = None,
    output: OutputFolder = None,
    as_json: Json = False,
) -> None:
    """Bring a model to devices in one go: package, push, sign, publish, roll out."""
    out = Output(as_json)
    request = read_request(
        name=name, version=version, profiles=profile, model=model, registry=registry, golden=golden,
        shapes=shape or [], stage=stage, from_image=from_image, output=output,
    )  # fmt: skip
    rollout = checked(RolloutRequest, model=name, version=version, slot=slot, selector=parse_selector(to))
    if not request.registry:
        raise InputError("--registry", "is missing, and devices pull from a registry", "Name one here or at login")
    from wherry_cli.owner import Owner  # signing libraries load slowly, most commands do without

    with connected() as client:
        owner = Owner(find_home(), client, out.note)
        owner.check()
        made, folder = make_package(request, out)
        published = owner.publish(made, now_utc())
        if not out.as_json:
            out.console.print(published_page(published))
        view = client.start_rollout(rollout)

        def result(ended: RolloutView) -> dict[str, Any]:
            return {"package": str(folder / "package.json"), "published": published, "rollout": ended}

        if watching:
            follow(client, view, out, timeout, result)
        else:
            out.result(result(view), lambda: started_page(view))
