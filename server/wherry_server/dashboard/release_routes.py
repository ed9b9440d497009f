"""Releases: the list, one release with all that was signed, and the form that rolls it out."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.orm import Session

from wherry.api.releases import ReleaseView
from wherry.errors import InputError, NotFound, WherryError
from wherry.metadata import file_name
from wherry.profile import misfits
from wherry_server.dashboard import release_rows as rows
from wherry_server.dashboard.addresses import address
from wherry_server.dashboard.frame import ActingDep, FormDep, Frame, FrameDep, VisitorDep, done, page_router
from wherry_server.dashboard.release_image import ImageCard, image_card
from wherry_server.dashboard.release_signatures import Signatures, signatures
from wherry_server.dashboard.rollout_form import read_form
from wherry_server.dashboard.rollout_rows import summary
from wherry_server.services import repository
from wherry_server.services.launch import create_rollout
from wherry_server.services.preview import preview_rollout
from wherry_server.store.device_views import DeviceFilter, device_facets, device_listing
from wherry_server.store.model_views import model_in_field
from wherry_server.store.release_views import release_page, release_view, signed_image
from wherry_server.store.rollout_views import rollout_page

LIST_PAGE = 50
DEVICES = 8
ROLLOUTS = 50
WINDOW = timedelta(hours=1)
Text = Annotated[str, Query(max_length=140)]
Ids = Annotated[str, Query(max_length=4000)]


def release_routes() -> APIRouter:
    """`/releases`, `/releases/MODEL/VERSION` and the rollout form below it."""
    router = page_router()
    router.add_api_route("/releases", _list, methods=["GET"])
    router.add_api_route("/releases/{model}/{version}", _one, methods=["GET"])
    router.add_api_route("/releases/{model}/{version}/rollout", _form, methods=["GET"])
    router.add_api_route("/releases/{model}/{version}/rollout", _start, methods=["POST"])
    return router


def _list(request: Request, _visitor: VisitorDep, frame: FrameDep, after: Text = "", model: Text = "") -> Response:
    now = frame.context.clock()
    with frame.context.store.read() as session:
        page = release_page(session, after, LIST_PAGE, model or None)
        serving = {(name, version): count for name, version, count in device_facets(session).serving}
    return frame.render(
        request,
        "releases.html",
        nav="releases",
        releases=[rows.release_row(view, serving.get((view.model, view.version), 0), now) for view in page.items],
        model=model,
        first=address("/releases", {"model": model}) if after else "",
        next=address("/releases", {"model": model, "after": page.next}) if page.next else "",
    )


def _one(request: Request, _visitor: VisitorDep, frame: FrameDep, model: str, version: str) -> Response:
    now = frame.context.clock()
    with frame.context.store.read() as session:
        view = release_view(session, model, version)
        others = release_page(session, model=model).items
        field = model_in_field(session, model, now - WINDOW, now)
        listing = device_listing(session, DeviceFilter(model=model, version=version), limit=DEVICES)
        rollouts = [one for one in rollout_page(session, None, ROLLOUTS, model=model).items if one.version == version]
        images = _images(frame, session, view)
    serving = next((one for one in field.versions if one.version == version), None)
    return frame.render(
        request,
        "release.html",
        nav="releases",
        release=rows.release_row(view, serving.devices if serving else 0, now),
        images=images,
        signatures=_signatures(frame),
        later=rows.superseded_by(view, others),
        profiles=sorted(serving.profiles.items()) if serving else [],
        devices=[device.id for device in listing.items],
        total=listing.total,
        rollouts=[summary(one, now) for one in rollouts[:DEVICES]],
    )


def _images(frame: Frame, session: Session, view: ReleaseView) -> list[ImageCard]:
    """The newest image of each profile, with all that was signed."""
    cards = []
    for one in rows.newest_images(view.images):
        signed = signed_image(session, view.model, view.version, one.profile)
        profile = frame.context.profiles.get(one.profile)
        reasons = misfits(signed, profile) if profile else []
        again = [str(image.counter) for image in view.images if image.profile == one.profile and image is not one]
        cards.append(image_card(signed, one.digest, one.withdrawn, reasons, again))
    return cards


def _signatures(frame: Frame) -> Signatures | None:
    info = repository.repository_info(frame.context)
    try:
        root = repository.metadata_file(frame.context, file_name("root", info.root))
        targets = repository.metadata_file(frame.context, file_name("targets", info.targets))
    except NotFound:
        return None
    return signatures(root, targets, frame.context.clock())


def _form(
    request: Request,
    _visitor: VisitorDep,
    frame: FrameDep,
    model: str,
    version: str,
    slot: Text = "",
    others: Ids = "",
    whom: Text = "all",
    label: Text = "",
    profile: Text = "",
    ids: Ids = "",
) -> Response:
    typed = {"slot": slot, "others": others, "whom": whom, "label": label, "profile": profile, "ids": ids}
    return _render_form(request, frame, model, version, typed)


def _render_form(
    request: Request, frame: Frame, model: str, version: str, typed: dict[str, str], status: int = 200
) -> Response:
    now = frame.context.clock()
    with frame.context.store.read() as session:
        view = release_view(session, model, version)
        others = release_page(session, model=model).items
        facets = device_facets(session)
    form, wanted = read_form(typed, model, version)
    preview, problem = None, None
    if wanted is not None:
        try:
            preview = rows.preview_rows(preview_rollout(frame.context, wanted))
        except (NotFound, InputError) as error:
            problem = error.as_dict()
    return frame.render(
        request,
        "rollout_form.html",
        nav="releases",
        status=status,
        release=rows.release_row(view, 0, now),
        form=form,
        preview=preview,
        problem=problem,
        later=rows.superseded_by(view, others),
        known_profiles=sorted(facets.profiles),
        known_labels=[f"{name}={value}" for name, values in facets.labels.items() for value in values],
        path=f"/releases/{model}/{version}/rollout",
    )


def _start(request: Request, acting: ActingDep, frame: FrameDep, form: FormDep, model: str, version: str) -> Response:
    _, wanted = read_form(form, model, version)
    if wanted is None:
        return _render_form(request, frame, model, version, form, status=422)
    try:
        rollout = create_rollout(acting, wanted)
    except WherryError:
        # The page says it beside the field, unless there is no such page either.
        return _render_form(request, frame, model, version, form, status=422)
    return done(f"/rollouts/{rollout}", "rollout-created")
