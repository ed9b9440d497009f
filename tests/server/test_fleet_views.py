"""What pages show of a whole fleet: searched, filtered, counted; on both databases."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import event, select

from wherry.errors import NotFound
from wherry_server.store import device_views, metric_views, model_views, release_views, rollout_views
from wherry_server.store.device_views import DeviceFilter
from wherry_server.store.schema import ServingSlot

DEVICES = 60


@pytest.fixture
def fleet(context, seed_fleet, clock):
    return seed_fleet(context.store, DEVICES, now=clock(), days=0.1, detailed=3)


@pytest.fixture
def session(context, fleet):
    with context.store.read() as found:
        yield found


def ids(session, **wanted):
    listing = device_views.device_listing(session, DeviceFilter(**wanted), limit=100)
    assert listing.total == len(listing.items)
    return {view.id for view in listing.items}


def test_devices_are_found_by_part_of_their_id_and_wildcards_are_letters(session):
    assert ids(session, search="-001") == {f"{kind}-{n:04}" for n in range(10, 20)
                                           for kind in ["desk" if n % 5 == 0 else "camera"]}  # fmt: skip
    assert ids(session, search="%") == ids(session, search="_") == set()


def test_devices_are_listed_by_their_state_and_the_counts_agree(session, fleet):
    counts = device_views.fleet_counts(session)
    every = set(fleet.devices)
    assert ids(session) == ids(session, state="active") == every
    offline = {view.id for view in device_views.device_page(session, "", 100, DeviceFilter()).items if not view.online}
    assert offline
    assert ids(session, state="offline") == offline
    assert ids(session, state="online") == every - offline
    assert len(ids(session, state="drifting")) == counts.drifting > 0
    assert len(ids(session, state="problem")) == counts.problems > 0
    assert len(ids(session, state="locked")) == counts.locked > 0
    assert (counts.devices, counts.online, counts.revoked) == (DEVICES, DEVICES - len(offline), 0)


def test_devices_are_found_by_what_they_serve_and_all_conditions_hold(session, fleet):
    new = ids(session, model="vision", version="2.0.0")
    assert new
    assert new < ids(session, model="vision")
    assert ids(session, model="speech") | ids(session, model="vision") == set(fleet.devices)
    both = ids(session, model="vision", version="2.0.0", labels=(("site", "lyon"), ("line", "2")), state="online")
    one_by_one = (
        new & ids(session, labels=(("site", "lyon"),)) & ids(session, labels=(("line", "2"),))
        & ids(session, state="online")
    )  # fmt: skip
    assert both == one_by_one != set()


def test_a_listing_pages_and_says_how_many_there_are(session, fleet):
    seen, after = [], ""
    while after is not None:
        page = device_views.device_listing(session, DeviceFilter(state="active"), after, 25)
        assert page.total == DEVICES
        seen += [view.id for view in page.items]
        after = page.next
    assert seen == sorted(fleet.devices)


def test_facets_name_what_a_list_can_be_narrowed_by(session):
    facets = device_views.device_facets(session)
    assert sum(facets.profiles.values()) == DEVICES
    assert sum(facets.labels["site"].values()) == sum(facets.labels["line"].values()) == DEVICES
    for model, version, devices in facets.serving:
        assert len(ids(session, model=model, version=version)) == devices


def test_locks_and_facts_are_shown(session):
    (locked,) = device_views.device_listing(session, DeviceFilter(state="locked", search="0018")).items
    assert locked.lock.holder == "recorder"
    assert locked.facts["system"] == "Debian GNU/Linux 12"


def test_models_in_the_field_count_devices_and_sum_their_requests(session, clock):
    since = clock() - timedelta(hours=1)
    found = {model.model: model for model in model_views.models_in_field(session, since, clock())}
    vision = found["vision"]
    assert vision.devices == len(ids(session, model="vision"))
    by_version = {version.version: version for version in vision.versions}
    assert by_version["2.0.0"].devices == len(ids(session, model="vision", version="2.0.0"))
    assert by_version["1.0.0"].devices == 0
    assert by_version["2.0.0"].desired > by_version["2.0.0"].devices  # some rejected it
    assert sum(by_version["2.0.0"].profiles.values()) == by_version["2.0.0"].devices
    assert vision.requests == sum(version.requests for version in vision.versions) > 0
    assert by_version["2.0.0"].p50_us < by_version["2.0.0"].p95_us <= by_version["2.0.0"].p99_us
    assert 0 < by_version["2.0.0"].error_rate < 0.01
    assert by_version["2.0.0"].per_second == pytest.approx(by_version["2.0.0"].requests / 3600)
    assert by_version["1.0.0"].error_rate is None
    assert model_views.model_in_field(session, "vision", since, clock()) == vision
    with pytest.raises(NotFound):
        model_views.model_in_field(session, "nothing", since, clock())


def test_a_revoked_device_serves_nothing_any_more(context, api, owner, device, clock):
    from wherry_server.services import reports

    release = owner.release("1")
    api.post("/v1/rollouts", {"model": "vision", "version": "1", "selector": {"everything": True}})
    device.sequence = 1
    reports.ingest_state(context, device.runs(release))
    with context.store.read() as session:
        (row,) = session.scalars(select(ServingSlot))
        assert (row.device, row.model, row.version, row.profile) == ("dev-1", "vision", "1", "generic-amd64")
    assert api.get("/v1/devices?model=vision&version=1").json()["items"][0]["id"] == "dev-1"
    assert api.request("DELETE", "/v1/devices/dev-1").status_code == 204
    with context.store.read() as session:
        (vision,) = model_views.models_in_field(session, clock() - timedelta(hours=1), clock())
        assert (vision.devices, vision.versions[0].desired) == (0, 0)
        counts = device_views.fleet_counts(session)
    assert (counts.devices, counts.revoked) == (0, 1)
    assert api.get("/v1/devices?state=active").json()["items"] == []
    assert api.get("/v1/devices?state=offline").json()["items"] == []
    assert len(api.get("/v1/devices?state=revoked").json()["items"]) == 1


def test_a_slot_that_changes_or_empties_changes_its_row(context, device, clock, owner):
    from wherry_server.services import reports

    first, second = owner.release("1"), owner.release("2")
    reports.ingest_state(context, device.runs(first))
    began = clock()
    clock.pass_time(minutes=5)
    reports.ingest_state(context, device.report())
    reports.ingest_state(context, device.runs(first, slot="side"))

    def rows():
        with context.store.read() as session:
            return [(row.slot, row.version, row.since) for row in
                    session.scalars(select(ServingSlot).order_by(ServingSlot.slot))]  # fmt: skip

    assert rows() == [("main", "1", began), ("side", "1", clock())]
    clock.pass_time(minutes=5)
    reports.ingest_state(context, device.runs(second))
    del device.slots["side"]
    reports.ingest_state(context, device.report())
    assert rows() == [("main", "2", clock())]
    device.slots["main"] = device.slots["main"].model_copy(update={"serving": None})
    reports.ingest_state(context, device.report())
    assert rows() == []


def test_releases_show_layers_and_what_the_owner_took_back(session):
    old = release_views.release_view(session, "vision", "1.0.0")
    assert all(image.withdrawn for image in old.images)  # 2.0.0 names a lowest counter above it
    new = release_views.release_view(session, "vision", "2.0.0")
    assert not any(image.withdrawn for image in new.images)
    assert set(new.images[0].layers) == {"base", "runtime", "serving", "model"}
    assert new.images[0].provider == "CPUExecutionProvider"
    signed = release_views.signed_image(session, "vision", "2.0.0", "jetson-orin")
    assert [gate.kind for gate in signed.gates] == ["ready", "signature", "golden", "latency"]
    with pytest.raises(NotFound):
        release_views.signed_image(session, "vision", "2.0.0", "toaster")


def test_rollouts_are_filtered_and_their_devices_paged(session):
    states = [view.state for view in rollout_views.rollout_page(session, None, 50).items]
    assert states == ["paused", "running", "failed", "completed", "completed"]
    (paused,) = rollout_views.rollout_page(session, None, 50, state="paused").items
    assert paused.reason == "2 of 20 devices rejected it"
    assert {view.model for view in rollout_views.rollout_page(session, None, 50, model="speech").items} == {"speech"}
    head = rollout_views.rollout_head(session, 3)
    assert head.targets == []
    seen, after = [], ""
    while after is not None:
        page = rollout_views.rollout_targets(session, 3, after=after, limit=20)
        assert page.total == sum(head.counts.values())
        seen += [target.device for target in page.items]
        after = page.next
    assert seen == [target.device for target in rollout_views.rollout_view(session, 3).targets]
    rejected = rollout_views.rollout_targets(session, 3, state="rejected")
    assert rejected.total == head.counts["rejected"] > 0
    assert rejected.items[0].deployment.gates[-1].ok is False
    assert rejected.items[0].online
    assert rollout_views.rollout_targets(session, 3, search=rejected.items[0].device).total == 1


def test_the_history_of_deployments_is_filtered_and_tells_its_gates(session):
    page = rollout_views.deployment_page(session, None, "", 100, model="vision", phase="rejected")
    assert {(item.deployment.release.model, item.deployment.phase) for item in page.items} == {("vision", "rejected")}
    device = page.items[0].device
    assert {item.device for item in rollout_views.deployment_page(session, device, "", 100).items} == {device}
    assert rollout_views.deployment_page(session, device, "", 100, slot="side").items == []
    assert page.items[0].deployment.gates[2].numbers["tolerance"] == 0.001


def test_views_of_a_fleet_take_a_handful_of_queries(context, fleet, clock):
    queries = []
    event.listen(context.store._engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    for view in (
        lambda s: device_views.device_listing(s, DeviceFilter(state="online", model="vision")),
        lambda s: model_views.models_in_field(s, clock() - timedelta(hours=1), clock()),
        lambda s: rollout_views.rollout_targets(s, 3),
        lambda s: metric_views.fleet_metrics(s),
    ):
        queries.clear()
        with context.store.read() as session:
            view(session)
        assert len(queries) <= 10, queries
