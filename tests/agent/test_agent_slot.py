"""The agent updates itself: a whole agent on a pretended device, with the supervisor's own rules between its lives."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import Device, Killer

from wherry.agent_release import AGENT_MODEL, AGENT_SLOT
from wherry.errors import NotFound, Tampered
from wherry.messages import Retry
from wherry.release import RunSpec
from wherry_agent import supervision
from wherry_agent.entry import Limits
from wherry_agent.events import CommandReceived, Event, LinkChanged, Stop
from wherry_agent.self_update import SelfUpdate
from wherry_agent.supervision import End
from wherry_agent.version_store import PARTS, VersionStore

CRASHED = End(code=1, seconds=1.0, words="ImportError: broken")
HUNG = End(code=-9, seconds=1000.0, hung=True)
LATER = {"crashes later"}


def archive(files: dict[str, bytes] | list[tuple[str, bytes]], **special: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, body in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            made.addfile(info, io.BytesIO(body))
        for name, kind in special.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            made.addfile(info)
    return out.getvalue()


class WithTrees:
    """An engine out of whose containers folders can be read."""

    def __init__(self, engine: Any, contents: dict[str, bytes]) -> None:
        self._engine = engine
        self._contents = contents

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def read_tree(self, name: str, path: str) -> Any:
        part = path.rpartition("/")[2]
        if part not in self._contents:
            raise NotFound(f"folder {path}", "does not exist")
        yield self._contents[part]


class Kill(BaseException):
    """The agent's process is killed."""


class Cutter(Killer):
    """As its parent, for processes that are only pretended."""

    def _point(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Kill


class Supervised(Device):
    """An agent that a supervisor starts: each of its versions behaves as its release says."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.version = ""
        self.works = {"link", "slot:main"}
        self.contents = {part: archive({f"{part}/x.py": b"x = 1"}) for part in PARTS}
        self.contents["app"] = archive({"app/wherry_agent/__main__.py": b"", "app/x.py": b"x"})
        self.lives: list[str] = []
        self.supervised = True
        self.leaving = False
        super().__init__(folder, **options)

    def make_own(self, engine: Any, fetcher: Any) -> tuple[Any, Any]:
        environ = {supervision.RUNS_AS: self.version or supervision.INSTALLED} if self.supervised else {}
        writes = {"unpack", "order", "confirm", "go_back", "give_up", "remove"}
        versions = self.killer.wrap(VersionStore(self.folder, environ), writes)
        own = SelfUpdate(
            "cam-1", WithTrees(engine, self.contents), fetcher, versions, PARTS, self._works,
            lambda: self.queue.append(Stop()), 0.0,
        )  # fmt: skip
        return own, versions.read

    def _works(self) -> frozenset[str]:
        deaf = self._behaviour(self.version) == "deaf"
        return frozenset(self.works - {"link"} if deaf else self.works)

    def _behaviour(self, version: str) -> str:
        for image in self.catalogue.values():
            if image.digest == f"sha256:{version}":
                return str(image.image.run.env["BEHAVIOUR"])
        return "good"

    def agent_release(self, key: str, behaviour: str = "good", **changes: Any) -> Any:
        run = RunSpec(memory_mb=100, env={"BEHAVIOUR": behaviour}, start_seconds=1)
        return self.release(key, behaviour, model=AGENT_MODEL, runtime="agent", gates=[], run=run, **changes)

    def pump(self) -> None:
        """Events until there are none; a Stop ends this life, and the supervisor decides on the next."""
        for _ in range(500):
            if not self.queue:
                return
            event = self.queue.popleft()
            if isinstance(event, Stop):
                self.leaving = True
                self.queue.clear()
                return
            self.reconciler.handle(event)
        raise AssertionError("the agent does not come to rest")

    def put(self, event: Event) -> None:
        try:
            super().put(event)
        except Kill:
            self.queue.clear()
            self.next_life(End(code=-9, seconds=1.0))
        while self.leaving:
            self.leaving = False
            self.next_life(End())

    def next_life(self, end: End) -> None:
        """What the supervisor does when the agent has ended: until one lives."""
        folder = str(self.folder / supervision.FOLDER)
        self.journal.close()
        while True:
            state, _ = supervision.judge(supervision.read_state(folder), self.version, end)
            state, self.version = supervision.choose(state, supervision.present_versions(folder))
            supervision.write_state(folder, state)
            self.lives.append(self.version[:4])
            behaviour = self._behaviour(self.version)
            if behaviour == "crashes":
                end = CRASHED
            elif behaviour == "hangs":
                end = HUNG
            elif behaviour == "crashes later" and state.current == self.version:
                end = CRASHED
            elif self._boots():
                return
            else:
                end = End(code=-9, seconds=1.0)

    def _boots(self) -> bool:
        try:
            self.boot()
        except Kill:
            self.queue.clear()
            self.journal.close()
            return False
        return True

    @property
    def own(self) -> Any:
        return next(slot for slot in self.state.slots if slot.slot == AGENT_SLOT)

    @property
    def last(self) -> Any:
        return self.own.deployment

    def runs(self) -> str | None:
        return self.own.serving.version if self.own.serving else None

    def files(self) -> set[str]:
        return {path.name[:4] for path in (self.folder / supervision.FOLDER).iterdir() if len(path.name) == 64}


@pytest.fixture
def agent(tmp_path: Path) -> Supervised:
    made = Supervised(tmp_path, limits=Limits(backoff_base_seconds=1))
    (tmp_path / supervision.FOLDER).mkdir(exist_ok=True)
    made.release("1")
    made.assign(1, main="1")
    return made


def test_a_good_release_proves_itself_and_stays(agent):
    image = agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    assert agent.version == image.digest.removeprefix("sha256:")
    assert (agent.runs(), agent.own.healthy, agent.own.port) == ("7", True, 0)
    assert agent.own.known_good.version == "7"
    assert agent.phases(AGENT_SLOT) == [
        "admitted", "fetching", "staging", "starting", "probing", "switching", "soaking", "committing", "committed",
    ]  # fmt: skip
    assert [gate.detail for gate in agent.last.gates] == ["works as before: link, slot:main"] * 2
    assert supervision.read_state(str(agent.folder / "agent")).current == agent.version
    assert not [name for name in agent.world.containers if ".agent." in name]
    assert image.digest not in {found.digest for found in agent.world.images.values()}


def test_it_never_runs_as_a_container_and_models_are_not_touched(agent):
    before = len(agent.world.history)
    agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    assert not [what for what in agent.world.history[before:] if "start" in what]
    assert agent.world.violations == []
    assert agent.serves() == "1"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("crashes", "last words: ImportError: broken"), ("hangs", "did not prove itself within 16 s")],
)
def test_one_that_fails_is_rejected_with_the_supervisors_reason_and_the_installed_agent_runs_on(
    agent, behaviour, reason
):
    image = agent.agent_release("7", behaviour)
    agent.assign(2, main="1", agent="7")
    assert (agent.version, agent.runs()) == ("", None)
    assert (agent.last.phase, agent.state.rejected) == ("rejected", [image.digest])
    assert reason in agent.last.problem.reason
    assert agent.files() == set()
    assert agent.serves() == "1"
    lives = len(agent.lives)
    agent.tick(60, times=20)
    assert len(agent.lives) == lives, "a rejected release is not tried again by itself"


def test_one_that_does_not_reach_the_server_any_more_gives_up_and_after_three_times_it_is_rejected(agent):
    agent.agent_release("7", "deaf")
    agent.assign(2, main="1", agent="7")
    assert agent.version == ""
    assert agent.last.phase == "admitted"
    agent.tick(700, times=4)
    assert agent.last.phase == "rejected"
    assert "worked before and does not within 1 s: link" in agent.last.problem.reason
    assert agent.version == ""


def test_where_nothing_was_reached_before_either_nothing_more_is_asked(agent):
    agent.works = set()
    agent.agent_release("7", "deaf")
    agent.assign(2, main="1", agent="7")
    assert agent.runs() == "7"


def test_one_that_crashes_after_it_was_committed_gives_way_to_the_one_before(agent):
    agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    bad = agent.agent_release("8", "crashes later")
    agent.assign(3, main="1", agent="8")
    assert agent.runs() == "8"
    agent.next_life(CRASHED)
    assert agent.runs() == "7"
    assert agent.own.known_good.version == "7"
    assert agent.last.phase == "rejected"
    assert "after it was committed: ended 3 times soon after its start" in agent.last.problem.reason
    assert agent.state.rejected == [bad.digest]
    agent.tick(60, times=5)
    assert agent.files() == {agent.version[:4]}


def test_one_that_a_full_disk_ends_is_not_rejected_and_comes_back(agent):
    agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    agent.agent_release("8")
    agent.assign(3, main="1", agent="8")
    lives = len(agent.lives)
    for _ in range(3):
        agent.next_life(End(code=supervision.WORLD, seconds=1.0))
    seven, eight = (agent.catalogue[key].digest[7:11] for key in ("7", "8"))
    assert agent.lives[lives : lives + 3] == [eight, eight, seven]
    agent.tick(60, times=3)
    assert (agent.runs(), agent.last.phase, agent.state.rejected) == ("8", "committed", [])


def test_and_the_installed_agent_is_the_last_that_is_left(agent):
    agent.agent_release("7", "crashes later")
    agent.assign(2, main="1", agent="7")
    agent.next_life(CRASHED)
    assert (agent.version, agent.runs(), agent.own.known_good) == ("", None, None)
    assert agent.last.phase == "rejected"


def test_an_operator_may_have_a_rejected_one_tried_again(agent):
    image = agent.agent_release("7", "crashes")
    agent.assign(2, main="1", agent="7")
    agent.agent_release("7", "good", config_digest=image.image.config_digest)
    agent.catalogue["7"] = agent.catalogue["7"].__class__(
        image.path, image.digest, image.manifest_bytes, agent.catalogue["7"].image
    )
    agent.put(CommandReceived(Retry(slot=AGENT_SLOT, digest=image.digest)))
    agent.assign(3, main="1", agent="7")
    assert agent.runs() == "7"


def test_the_second_update_keeps_the_first_and_forgets_what_was_before_that(agent):
    for number, key in enumerate(("7", "8", "9"), start=2):
        agent.agent_release(key)
        agent.assign(number, main="1", agent=key)
        assert agent.runs() == key
    agent.tick(10, times=3)
    digests = [agent.catalogue[key].digest[7:11] for key in ("8", "9")]
    assert agent.files() == set(digests)
    state = supervision.read_state(str(agent.folder / "agent"))
    assert [state.previous[:4], state.current[:4]] == digests


def test_an_emptied_slot_brings_the_installed_agent_back(agent):
    agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    agent.assign(3, main="1")
    agent.tick(10, times=2)
    assert (agent.version, agent.runs(), agent.own.known_good) == ("", None, None)
    assert agent.files() == set()
    assert agent.last.phase == "removed"


def test_a_withdrawn_one_ends_at_once(agent):
    image = agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    agent.trust.withdrawn = frozenset({image.digest})
    agent.stored_withdrawn = frozenset({image.digest})
    agent.put(LinkChanged(True))
    withdraw(agent, image.digest, 3)
    agent.tick(10, times=2)
    assert agent.version == ""
    assert agent.files() == set()


def test_nobody_goes_back_to_one_that_was_withdrawn_when_another_ran_already(agent):
    first = agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    agent.agent_release("8")
    agent.assign(3, main="1", agent="8")
    withdraw(agent, first.digest, 3)
    agent.tick(10, times=2)
    assert agent.runs() == "8"
    assert agent.files() == {agent.version[:4]}
    state = supervision.read_state(str(agent.folder / "agent"))
    assert (state.current, state.previous) == (agent.version, "")


def test_nobody_goes_back_to_one_that_was_withdrawn_while_the_next_proved_itself(agent):
    first = agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    agent.agent_release("8")
    agent.hold_at = "Probe"
    agent.assign(3, main="1", agent="8")
    withdraw(agent, first.digest, 3)
    agent.hold_at = None
    agent.worker.finish()
    agent.pump()
    agent.tick(10, times=3)
    assert agent.runs() == "8"
    assert agent.files() == {agent.version[:4]}
    assert supervision.read_state(str(agent.folder / "agent")).previous == ""


def test_a_withdrawn_one_gives_way_to_the_one_before(agent):
    agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    before = agent.version
    second = agent.agent_release("8")
    agent.assign(3, main="1", agent="8")
    withdraw(agent, second.digest, 3)
    agent.tick(10, times=2)
    assert (agent.version, agent.runs(), agent.own.known_good.version) == (before, "7", "7")
    assert agent.files() == {before[:4]}
    agent.agent_release("9")
    agent.assign(4, main="1", agent="9")
    assert agent.runs() == "9"
    assert supervision.read_state(str(agent.folder / "agent")).previous == before


def withdraw(agent: Supervised, digest: str, sequence: int) -> None:
    from dataclasses import replace

    from wherry_agent.events import AssignmentVerified

    payload = agent.journal.entry.payload
    marks = replace(agent.journal.entry.marks, revoked=frozenset({digest}), targets=99)
    assignment = agent.trust.stored(payload, marks, agent.now)
    agent.put(AssignmentVerified(payload, assignment, marks))


def test_without_a_supervisor_it_is_refused_in_words(agent):
    agent.supervised = False
    agent.boot()
    agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    assert agent.last.phase == "refused"
    assert "runs without its supervisor" in agent.last.problem.reason


def test_a_model_in_the_agents_slot_and_an_agent_in_a_models_slot_are_refused(agent):
    agent.release("2")
    agent.agent_release("7")
    agent.assign(2, main="7", agent="2")
    reasons = {slot.slot: slot.deployment.problem.reason for slot in agent.state.slots}
    assert "is a model, and slot agent is for releases of the agent itself" in reasons["agent"]
    assert "belongs in slot agent and not in main" in reasons["main"]
    assert agent.serves() == "1"


def test_a_release_without_this_devices_python_is_rejected(agent):
    del agent.contents[PARTS[0]]
    agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    assert agent.last.phase == "rejected"
    assert "does not exist" in agent.last.problem.reason
    assert agent.lives == []


def test_models_wait_while_a_new_agent_proves_itself_but_a_dead_one_is_revived(agent):
    agent.agent_release("7")
    agent.release("2")
    agent.hold_at = "Probe"
    agent.assign(2, main="1", agent="7")
    assert agent.last.phase == "probing"
    agent.hold_at = None
    agent.assign(3, main="2", agent="7")
    name = agent.name(agent.catalogue["1"])
    assert agent.serves() == "1"
    agent.world.hold_allowed = True
    agent.world.containers[name] = agent.world.containers[name].__class__(
        **{field: getattr(agent.world.containers[name], field) for field in agent.world.containers[name].__slots__}
        | {"state": "exited"}
    )
    agent.tick()
    assert agent.worker.cancel_asked
    agent.worker.finish()
    agent.pump()
    agent.tick(times=3)
    assert agent.runs() == "7"
    assert agent.serves() == "2"


def test_a_reboot_in_the_middle_of_the_proof_costs_one_start(agent):
    agent.agent_release("7")
    agent.hold_at = "Probe"
    agent.assign(2, main="1", agent="7")
    agent.hold_at = None
    agent.journal.close()
    agent.world.power_cut()
    folder = str(agent.folder / "agent")
    state, agent.version = supervision.choose(supervision.read_state(folder), supervision.present_versions(folder))
    supervision.write_state(folder, state)
    assert (state.attempts, bool(agent.version)) == (2, True)
    agent.boot()
    agent.tick(times=3)
    assert agent.runs() == "7"
    assert agent.own.known_good.version == "7"


def test_the_image_of_one_that_was_given_up_is_gone_before_the_next_is_fetched(agent):
    """They share layers, and nobody verifies those of the agent's image after a power cut."""
    first = agent.agent_release("7")
    agent.hold_at = "Stage"
    agent.assign(2, main="1", agent="7")
    assert first.digest in {image.digest for image in agent.world.images.values()}
    agent.hold_at = None
    agent.journal.close()
    agent.world.power_cut()
    agent.hold_at = "Fetch"
    agent.boot()
    agent.agent_release("8")
    agent.assign(3, main="1", agent="8")
    assert (agent.last.release.version, agent.last.phase) == ("8", "fetching")
    assert first.digest not in {image.digest for image in agent.world.images.values()}


def test_what_a_person_installed_runs_first_and_the_wish_of_the_server_follows_by_trial(agent):
    agent.agent_release("7")
    agent.assign(2, main="1", agent="7")
    agent.journal.close()
    (agent.folder / "agent/versions").unlink()
    agent.version = ""
    agent.lives.clear()
    pulls = len(agent.world.images)
    agent.boot()
    agent.tick(times=3)
    assert (agent.lives[0], agent.runs()) == (agent.version[:4], "7")
    assert len(agent.world.images) == pulls, "what is unpacked already is not fetched again"


@pytest.mark.parametrize(("behaviour", "first"), [("good", 1), ("crashes", 4)])
def test_a_kill_at_writes_of_journal_disk_or_engine_changes_nothing_in_the_end(tmp_path, monkeypatch, behaviour, first):
    """At every sixth: all of them take a minute."""
    monkeypatch.setattr(os, "sync", lambda: None)  # of the whole machine, dozens of times
    kills = 0
    for at in range(first, 1000, 6):
        folder = tmp_path / str(at)
        (folder / "agent").mkdir(parents=True)
        agent = Supervised(folder, limits=Limits(backoff_base_seconds=1), killer=Cutter(None))
        agent.release("1")
        agent.assign(1, main="1")
        agent.agent_release("7", behaviour)
        agent.killer.count, agent.killer.at = 0, at
        agent.assign(2, main="1", agent="7")
        if agent.journal.entry.marks.sequence < 2:  # it was killed before it knew of it
            agent.assign(2, main="1", agent="7")
        agent.tick(30, times=6)
        wanted = "7" if behaviour == "good" else None
        assert (agent.runs(), agent.serves()) == (wanted, "1"), f"after a kill at {at}"
        assert agent.last.phase == ("committed" if wanted else "rejected"), f"after a kill at {at}"
        assert agent.world.violations == []
        agent.journal.close()
        if agent.killer.count < at:
            break
        kills += 1
    assert kills > 10


@pytest.mark.parametrize(
    "evil",
    [
        archive({"app/../../outside": b"x"}),
        archive({"/etc/outside": b"x"}),
        archive({}, link=tarfile.SYMTYPE),
        archive({}, link=tarfile.LNKTYPE),
        archive({}, device=tarfile.CHRTYPE),
        archive({"app/big": bytes(3000)}),
        archive({"app/other.py": b"no agent in it"}),
        archive([("app/wherry_agent/__main__.py", b"x"), ("app/wherry_agent/__main__.py", b"y")]),
        archive([("app", b"a file"), ("app/wherry_agent/__main__.py", b"below a file")]),
    ],
)
def test_what_has_no_place_in_a_release_is_not_unpacked(tmp_path, evil):
    store = VersionStore(tmp_path / "state", {})
    (tmp_path / "state").mkdir()
    with pytest.raises(Tampered):
        store.unpack("sha256:" + "a" * 64, [iter([evil])], 2000)
    assert not (tmp_path / "outside").exists()
    assert not store.has("sha256:" + "a" * 64)
    assert list((tmp_path / "state/agent").iterdir()) == []
