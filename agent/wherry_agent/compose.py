"""The composition root of the daemon: every adapter is made and joined here, and nowhere else."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from wherry.errors import StoreError, WherryError
from wherry.messages import StateReport, TelemetryAck
from wherry.profile import DeviceProfile, HostFacts, RunOptions, load_profiles
from wherry.questions import Check
from wherry_agent import control
from wherry_agent.answers import Answerer, Question
from wherry_agent.config import AgentConfig
from wherry_agent.containers import DockerEngine
from wherry_agent.enrolment import Renewer
from wherry_agent.events import AssignmentReceived, Event, Stop, Tick
from wherry_agent.executor import Executor
from wherry_agent.fetch.registry import RegistryFetcher
from wherry_agent.golden_cases import GoldenCases
from wherry_agent.host import Host, read_facts
from wherry_agent.identity_store import Identity, IdentityStore
from wherry_agent.journal import Journal
from wherry_agent.link import AgentLink
from wherry_agent.local_api import LocalApi
from wherry_agent.maker import Settings
from wherry_agent.prober import HttpProber
from wherry_agent.reconciler import Reconciler
from wherry_agent.route.both import BothRoutes
from wherry_agent.route.haproxy import HaproxyRoute
from wherry_agent.route.haproxy_config import HAPROXY_FOLDER, Bounds
from wherry_agent.route.haproxy_process import lacks, runs_by_unit
from wherry_agent.route.kernel import KernelRoute
from wherry_agent.schedule import Schedule
from wherry_agent.self_update import SelfUpdate
from wherry_agent.server_client import ServerClient
from wherry_agent.service_manager import ServiceManager
from wherry_agent.spool import IN_MEMORY, Spool
from wherry_agent.state_folder import only_agent, write_status
from wherry_agent.supervision import RUNS_AS
from wherry_agent.telemetry import Flusher, Sampler, StatsReader
from wherry_agent.trial import Examiner
from wherry_agent.trust import Trust
from wherry_agent.update_lock import LockFile
from wherry_agent.version_store import PARTS, PYTHON, VersionStore
from wherry_agent.worker import Aide, Worker
from wherry_agent.world import Policy, World

_log = logging.getLogger(__name__)
_MEMORY_BYTES = 2**20


def now() -> datetime:
    """The time, aware, UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Device:
    """The adapters that know containers and routes, and the device's profile, if this agent ships it."""

    engine: DockerEngine
    route: BothRoutes
    profile: DeviceProfile | None


def make_device(
    state: Path,
    config: AgentConfig,
    device: str,
    profile_name: str,
    before_reload: Callable[[], None] = lambda: None,
) -> Device:
    """Engine and route of a device; `before_reload` is called before haproxy counts from zero."""
    profile = load_profiles().get(profile_name)
    options = profile.run if profile else RunOptions()
    engine = DockerEngine(device, options, config.engine_url, config.addresses(), config.engine_timeout_seconds)
    bounds = Bounds(hold_seconds=config.hold_seconds)
    # What a service starts ends with it: there, haproxy has a unit of its own.
    by_unit = runs_by_unit()
    haproxy = HaproxyRoute(state / HAPROXY_FOLDER, config.addresses(), bounds, before_reload, by_unit)
    kernel = KernelRoute(config.table(device), config.addresses())
    return Device(
        engine, BothRoutes(kernel, haproxy, config.route, lambda: lacks(by_unit), config.hold_seconds > 0), profile
    )


def make_trust(state: Path, device: str, profile: str, server_url: str, ca_file: Path | None) -> Trust:
    """The TUF folder of a device."""
    return Trust(state / "tuf", device, profile, f"{server_url.rstrip('/')}/v1/tuf/metadata/", ca_file)


def run_agent(state: Path, config: AgentConfig) -> None:
    """The daemon, until SIGTERM or SIGINT. Containers go on serving after it.

    Raises:
        IdentityError: the device is not enrolled.
        Conflict: another agent runs on the state folder.
        StoreError: the state folder cannot be used.
    """
    os.umask(0o077)
    with only_agent(state), ExitStack() as stack:
        store = IdentityStore(state)
        identity = store.load()
        inbox = control.Inbox()
        profile = load_profiles().get(identity.profile)
        host = Host(_images_folder(config, state), profile.sensors if profile else ())
        spool = open_spool(state, identity.device, config, host)
        stack.callback(spool.close)

        def on_ack(ack: TelemetryAck) -> None:
            flusher.on_ack(ack)

        def on_question(question: Question) -> None:
            parts.answerer.ask(question)

        link = AgentLink(identity.device, identity.broker_settings(), inbox.put, on_ack, now, on_question)
        flusher = Flusher(spool, link, now)
        client = ServerClient(identity.server_url, identity.ca_file, identity.device, store.keys, now)
        renewing = ServerClient(identity.server_url, identity.ca_file, identity.device, store.keys, now)
        renewer = Renewer(store, renewing, link.use, lambda: link.connects, now)
        parts = _assemble(state, config, identity, inbox, host, spool, link, client)
        stack.callback(parts.stop)
        schedule = Schedule()
        schedule.every(config.tick_seconds, "tick", _ticks(inbox.put), soon=True)
        schedule.every(config.poll_seconds, "poll", lambda: _poll(client, inbox.put), soon=True)
        schedule.every(config.sample_seconds, "sample", parts.sampler.sample)
        schedule.every(config.flush_seconds, "flush", flusher.flush)
        schedule.every(config.renew_check_seconds, "renew", renewer.check, soon=True)
        _stop_on_signals(inbox.put)
        link.start()
        stack.callback(link.stop)
        schedule.start()
        stack.callback(schedule.stop)
        stack.callback(flusher.stop)
        _log.info("agent of device %s (%s) runs on %s", identity.device, identity.profile, state)
        control.run(inbox, parts.reconciler, ServiceManager(), patience_seconds=4 * config.tick_seconds)
        _log.info("stopping; containers go on serving")


def open_spool(state: Path, device: str, config: AgentConfig, host: Host) -> Spool:
    """The spool on disk; a small one in memory where the disk does not take it: telemetry must not stop the agent."""
    budget, writing = config.spool_mb * 1_048_576, host.flash.writing
    try:
        return Spool(state / "spool.db", device, budget, host.boot_id(), writing)
    except StoreError as error:
        _log.error("%s; telemetry waits in memory until the agent is started again", error)
        return Spool(IN_MEMORY, device, min(budget, _MEMORY_BYTES), host.boot_id())


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the daemon is made of besides its link to the server."""

    reconciler: Reconciler
    sampler: Sampler
    answerer: Answerer
    stop: Callable[[], None]


def _assemble(
    state: Path,
    config: AgentConfig,
    identity: Identity,
    inbox: control.Inbox,
    host: Host,
    spool: Spool,
    link: AgentLink,
    client: ServerClient,
) -> _Parts:
    samplers: list[Sampler] = []

    def before_reload() -> None:
        with suppress(WherryError):
            samplers[0].sample()

    device = make_device(state, config, identity.device, identity.profile, before_reload)
    # Of the machine, and of what runs this agent: a release of the agent must fit both.
    facts = read_facts().model_copy(update={"python": PYTHON.removeprefix("python")})
    prober, credentials = HttpProber(), config.credentials(state)
    fetcher = RegistryFetcher(
        device.engine, config.engine_url, config.pull_stall_seconds, config.pull_deadline_seconds,
        credentials.header, credentials.advice,
    )  # fmt: skip
    golden_cases = GoldenCases(device.engine, prober, config.golden_limit_mb * 1_048_576)
    versions = VersionStore(state)
    executor = Executor(
        Settings(identity.device, range(config.first_port, config.last_port + 1), config.limits().reserve_mb),
        device.engine,
        fetcher,
        device.route,
        Examiner(device.engine, prober, config.patience(), host, golden_cases, device.route.statistics),
        host,
        before_stop=lambda: samplers[0].farewell(),
        own=SelfUpdate(
            identity.device, device.engine, fetcher, versions, PARTS, lambda: _works(link, reconciler),
            lambda: inbox.put(Stop()), config.agent_soak_seconds,
        ),
    )  # fmt: skip
    worker, aide = Worker(executor, inbox.put), Aide()
    journal = Journal(state / "journal.db", identity.device, config.limits(), host.flash.writing)
    trust = make_trust(state, identity.device, identity.profile, identity.server_url, identity.ca_file)
    lock = LockFile(state)
    world = World(
        device.engine, device.route, host, prober, trust, client, link, spool, lock, now, inbox.put,
        golden_cases.recheck, versions.read,
    )  # fmt: skip
    local, status = LocalApi(state, lock, config.local_group, now), write_status(state)

    def publish(report: StateReport) -> None:
        local.publish(report)
        with host.flash.writing("status"):
            status(report)

    reconciler = Reconciler(journal, world, _policy(config, identity, device, facts), worker, aide, publish)
    samplers.append(Sampler(reconciler.active_slots, StatsReader(device.route.statistics), host.sample, spool, now))
    answerer = Answerer(
        identity.device, device.engine, reconciler.active_slots, lambda: _examine(state, config), facts.by_name(),
        link.reply,
    )  # fmt: skip
    try:
        local.start()
    except WherryError as error:  # a device that serves is worth more than one that says so
        _log.warning("%s", error)

    def stop() -> None:
        local.stop()
        answerer.stop()
        aide.stop()
        worker.stop(5.0)
        journal.close()

    return _Parts(reconciler, samplers[0], answerer, stop)


def _works(link: AgentLink, reconciler: Reconciler) -> frozenset[str]:
    """What a next agent must be able to do as well as this one."""
    slots = {f"slot:{slot.slot}" for slot in reconciler.active_slots()}
    return frozenset(slots | ({"link"} if link.connected else set()))


def _policy(config: AgentConfig, identity: Identity, device: Device, facts: HostFacts) -> Policy:
    return Policy(
        profile_name=identity.profile,
        profile=device.profile,
        facts=facts,
        limits=config.limits(),
        fixed_ports=config.slots,
        base_port=config.slot_base_port,
        watermark_bytes=config.watermark_mb * 1_048_576,
        route_check_seconds=config.route_check_seconds,
        report_seconds=config.report_seconds,
        unready_restarts=config.unready_restarts,
        tick_seconds=config.tick_seconds,
        golden_seconds=config.golden_seconds,
    )


def _examine(state: Path, config: AgentConfig) -> list[Check]:
    """Asked for now and then: what only this needs is not in memory before."""
    from wherry_agent.doctor import examine

    return examine(state, config)


def _images_folder(config: AgentConfig, state: Path) -> Path:
    """Where free disk is measured: the engine's folder if this is its machine, else the state folder."""
    return config.images_folder if config.images_folder.exists() else state


def _poll(client: ServerClient, put: Callable[[Event], None]) -> None:
    payload = client.fetch_assignment()
    if payload is not None:
        put(AssignmentReceived(payload, "https"))


def _ticks(put: Callable[[Event], None]) -> Callable[[], None]:
    """Ticks as long as the process that started this one lives: a supervisor that was killed must not be outlived."""
    parent = os.getppid() if RUNS_AS in os.environ else None

    def tick() -> None:
        put(Tick() if parent in (None, os.getppid()) else Stop())

    return tick


def _stop_on_signals(put: Callable[[Event], None]) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        put(Stop())

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
