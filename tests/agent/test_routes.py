"""Slots' stable ports on the real thing: one contract for both ways, then what each has of its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agent_fakes import make_image
from ports import free_port
from route_backends import Callers, Image, ask, images, wait_for

from wherry.errors import RouteError
from wherry.release import HttpGate, RunSpec
from wherry_agent.assignment import TrustedImage
from wherry_agent.counters import change, read_counters
from wherry_agent.observed import Target
from wherry_agent.route.both import BothRoutes
from wherry_agent.route.haproxy import HaproxyRoute
from wherry_agent.route.haproxy_config import CONFIG_FILE, MAP_FILE, MASTER_SOCKET, PID_FILE, Bounds
from wherry_agent.route.haproxy_process import HaproxyProcess, lacks
from wherry_agent.route.kernel import KernelRoute

pytestmark = pytest.mark.docker
TABLE = "wherry_routes_test"
DRAINS = make_image(1)
CUSTOM = make_image(2, runtime="custom", gates=[HttpGate(deadline_seconds=5, path="/")], run=RunSpec(env={}))


def haproxy_route(folder: Path, **options: Any) -> HaproxyRoute:
    return HaproxyRoute(folder / "haproxy", options.pop("addresses", ("127.0.0.1",)), **options)


@pytest.fixture
def stable() -> int:
    return free_port()


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[HaproxyRoute]:
    route = haproxy_route(tmp_path)
    yield route
    route.clear()


@pytest.fixture(params=["kernel", "haproxy"])
def way(request, tmp_path: Path) -> Iterator[Any]:
    """Makes routes of one way, for the addresses it is given."""
    made = []

    def make(*addresses: str) -> Any:
        addresses = ("127.0.0.1", *addresses)
        kernel = request.param == "kernel"
        made.append(KernelRoute(TABLE, addresses) if kernel else haproxy_route(tmp_path, addresses=addresses))
        return made[-1]

    yield make
    for route in made:
        route.clear()


@pytest.fixture
def neighbour() -> Iterator[tuple[str, list[str]]]:
    """Another machine, or a container: a network of its own. Our address in it, and how to run things there."""
    name, number = f"wherry-{os.getpid()}", os.getpid() % 250
    ours, theirs = f"10.213.{number}.1", f"10.213.{number}.2"
    here = f"wr{os.getpid()}"
    run = ["ip", "netns", "exec", name]
    for words in (
        f"ip netns add {name}",
        f"ip link add {here} type veth peer name eth0 netns {name}",
        f"ip address add {ours}/24 dev {here}",
        f"ip link set {here} up",
        f"ip -n {name} address add {theirs}/24 dev eth0",
        f"ip -n {name} link set eth0 up",
    ):
        subprocess.run(words.split(), check=True)
    yield ours, run
    subprocess.run(["ip", "netns", "delete", name], check=True)


# -- one contract -----------------------------------------------------------------------------------------


def test_a_way_reads_back_what_was_made_and_nothing_when_nothing_was(way):
    route, ports = way(), [free_port(), free_port()]
    assert route.read() == {}
    route.apply({ports[0]: 18991, ports[1]: 18992})
    assert route.read() == {ports[0]: 18991, ports[1]: 18992}
    route.apply({ports[0]: 18993})
    route.apply({ports[0]: 18993})
    assert route.read() == {ports[0]: 18993}
    route.apply({})
    assert route.read() == {}


def test_callers_reach_the_image_that_the_port_was_turned_to_last(way, stable):
    route = way()
    with images("one", "two") as (one, two):
        for image in (one, two, one, two):
            route.apply({stable: image.port})
            assert [ask(stable) for _ in range(5)] == [image.name] * 5
        route.apply({})
        assert ask(stable) == "ConnectionRefusedError"


def test_a_request_that_is_under_way_gets_its_answer_from_the_image_that_was_asked(way, stable):
    route, said = way(), []
    with images("old", seconds=1.0) as (old,), images("new") as (new,):
        route.apply({stable: old.port})
        caller = threading.Thread(target=lambda: said.append(ask(stable, body=b"x" * 1_000_000)))
        caller.start()
        assert old.asked.wait(10)
        route.apply({stable: new.port})
        assert ask(stable) == "new"
        caller.join(20)
    assert said == ["old"]


def test_two_slots_are_turned_each_by_itself(way):
    route, first, second = way(), free_port(), free_port()
    with images("one", "two", "three") as (one, two, three):
        route.apply({first: one.port, second: two.port})
        assert (ask(first), ask(second)) == ("one", "two")
        route.apply({first: one.port, second: three.port})
        assert (ask(first), ask(second)) == ("one", "three")


@pytest.mark.parametrize("exposed", [True, False], ids=["exposed", "not exposed"])
def test_other_machines_reach_a_port_where_it_is_exposed_and_only_there(way, stable, neighbour, exposed):
    address, run = neighbour
    route = way(address) if exposed else way()
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom route_backends import ask\n"
    script += f"print(ask({stable}, host={address!r}, timeout=3))"
    with images("here") as (image,):
        # What the kernel redirects keeps its address: images listen on exposed ones, too.
        relay = Relay(address, image.port)
        route.apply({stable: image.port})
        found = subprocess.run([*run, "python3", "-c", script], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == ("here" if exposed else "ConnectionRefusedError")
        assert ask(stable) == "here"
        relay.close()


class Relay:
    """Listens where the engine publishes a container on an exposed address."""

    def __init__(self, address: str, port: int) -> None:
        self._socket = socket.create_server((address, port))
        self._port = port
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            with caller, socket.create_connection(("127.0.0.1", self._port)) as image:
                image.sendall(caller.recv(65_536))
                while part := image.recv(65_536):
                    caller.sendall(part)
                    if b"\r\n\r\n" in part and part.rstrip().endswith(b" 0"):
                        break

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


# -- haproxy ----------------------------------------------------------------------------------------------


def processes(folder: Path) -> list[int]:
    """haproxy's processes on a folder: a worker that is leaving is one, too."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in words and b"haproxy" in words.partition(b"\0")[0]:
            found.append(int(path.parent.name))
    return sorted(found)


def test_callers_of_a_port_that_is_turned_to_nothing_wait_and_then_get_their_answers(haproxy, stable):
    with images("old", "new") as (old, new):
        haproxy.apply({stable: old.port})
        with Callers(stable) as callers:
            callers.wait_for("old")
            haproxy.apply({stable: None})
            assert haproxy.read() == {}
            wait_for(lambda: haproxy.under_way(old.port) == 0)
            old.die()
            before = len(callers.answers)
            time.sleep(0.5)  # they do wait: nobody answers meanwhile
            assert len(callers.answers) - before <= callers.count
            haproxy.apply({stable: new.port})
            callers.wait_for("new")
    assert callers.failed == []


def test_a_large_body_waits_whole(haproxy, stable):
    said = []
    with images("late") as (image,):
        haproxy.apply({stable: None})
        caller = threading.Thread(target=lambda: said.append(ask(stable, body=b"x" * 8_000_000)))
        caller.start()
        time.sleep(0.3)
        haproxy.apply({stable: image.port})
        caller.join(20)
    assert said == ["late"]


def test_nobody_waits_for_ever(tmp_path, stable):
    route = haproxy_route(tmp_path, bounds=Bounds(hold_seconds=1))
    try:
        route.apply({stable: None})
        began = time.monotonic()
        assert ask(stable) == "503 5"
        assert 0.8 < time.monotonic() - began < 15
    finally:
        route.clear()


def test_a_long_head_and_http2_reach_the_image_as_they_are(haproxy, stable):
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    settings, get = b"\0\0\0\4\0\0\0\0\0", b"\0\0\x0e\1\5\0\0\0\1\x82\x86\x84\x41\x09localhost"
    with socket.create_server(("127.0.0.1", 0)) as image:
        image.settimeout(20)
        haproxy.apply({stable: image.getsockname()[1]})
        with socket.create_connection(("127.0.0.1", stable), 20) as caller:
            caller.sendall(b"GET / HTTP/1.1\r\nHost: here\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n")
            with image.accept()[0] as asked:
                assert asked.recv(14) == b"GET / HTTP/1.1"
        with socket.create_connection(("127.0.0.1", stable), 20) as caller:
            caller.sendall(preface + settings + get)
            with image.accept()[0] as asked:
                assert asked.recv(24) == preface
                assert haproxy.under_way(image.getsockname()[1]) == 1


def test_callers_of_one_slot_shut_out_nobody_elses_and_make_room_when_they_hang_up(tmp_path, stable):
    route, held = haproxy_route(tmp_path, bounds=Bounds(connections=40)), free_port()
    request = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
    try:
        with images("here") as (image,), contextlib.ExitStack() as opened:
            route.apply({stable: image.port, held: None})
            for _ in range(60):
                opened.enter_context(socket.create_connection(("127.0.0.1", held), 10)).sendall(request)
            assert ask(stable) == "here"
            opened.close()
            late: list[str] = []
            caller = threading.Thread(target=lambda: late.append(ask(held, timeout=40)))
            caller.start()
            wait_for(lambda: open_now(held, tmp_path) == 1)
            route.apply({stable: image.port, held: image.port})
            caller.join(50)
            assert late == ["here"]
            assert route.answers(image.port).requests == 2, "nothing was asked for those who hung up"
    finally:
        route.clear()


def open_now(stable: int, folder: Path) -> int:
    """Connections of a slot's callers, as the process that runs counts them."""
    process = HaproxyProcess(folder / "haproxy", by_unit=False, timeout=10)
    text = process.tell(process.workers()[0], "show stat")
    rows = [line.split(",") for line in text.splitlines()]
    return next(int(row[4]) for row in rows if row[:2] == [f"in-{stable}", "FRONTEND"])


def test_more_callers_than_an_image_takes_at_a_time_are_let_to_it_one_after_the_other(tmp_path, stable):
    route, said = haproxy_route(tmp_path, bounds=Bounds(requests=4)), []
    try:
        with images("busy", seconds=0.05) as (image,):
            route.apply({stable: None})
            callers = [threading.Thread(target=lambda: said.append(ask(stable))) for _ in range(40)]
            for caller in callers:
                caller.start()
            time.sleep(0.3)
            route.apply({stable: image.port})
            for caller in callers:
                caller.join(20)
        assert said == ["busy"] * 40
        assert image.most <= 4
    finally:
        route.clear()


def test_an_image_that_drops_its_connections_when_it_ends_loses_no_request(haproxy, stable):
    with images("a", "b", "c", "d") as found:
        haproxy.apply({stable: found[0].port})
        with Callers(stable) as callers:
            for old, new in itertools.pairwise(found):
                callers.wait_for(old.name)
                haproxy.apply({stable: new.port})
                wait_for(lambda port=old.port: haproxy.under_way(port) == 0)
                old.die()
            callers.wait_for("d")
    assert callers.failed == []


def test_another_slot_costs_the_first_ones_callers_nothing(haproxy, stable):
    more = [free_port() for _ in range(3)]
    with images("steady", "other") as (steady, other):
        targets = {stable: steady.port}
        haproxy.apply(targets)
        with Callers(stable) as callers:
            for port in more:
                callers.wait_for("steady")
                targets[port] = other.port
                haproxy.apply(targets)
                assert ask(port) == "other"
            callers.wait_for("steady")
    assert callers.failed == []


def test_a_connection_that_an_old_process_keeps_is_turned_with_the_others(haproxy, stable):
    """After a reload the process before lives on for connections that are open."""
    import http.client

    with images("one", "two") as (one, two), images("slow", seconds=2.0) as (slow,):
        busy = free_port()
        haproxy.apply({stable: one.port, busy: slow.port})
        kept = http.client.HTTPConnection("127.0.0.1", stable, timeout=20)
        kept.request("GET", "/")
        assert kept.getresponse().read().startswith(b"one")
        caller = threading.Thread(target=ask, args=(busy,))  # keeps the process from ending
        caller.start()
        assert slow.asked.wait(10)
        more = free_port()
        haproxy.apply({stable: one.port, busy: slow.port, more: two.port})
        haproxy.apply({stable: two.port, busy: slow.port, more: two.port})
        one.die()
        kept.request("GET", "/")
        assert kept.getresponse().read().startswith(b"two")
        kept.close()
        caller.join(20)


@pytest.mark.parametrize("who", ["worker", "master", "both"])
def test_a_haproxy_that_was_killed_leads_nowhere_and_is_started_again(haproxy, stable, tmp_path, who):
    with images("here") as (image,):
        haproxy.apply({stable: image.port})
        found = processes(tmp_path)
        assert len(found) == 2
        for process in {"worker": found[1:], "master": found[:1], "both": found}[who]:
            os.kill(process, signal.SIGKILL)
        wait_for(lambda: haproxy.read() == {})
        haproxy.apply({stable: image.port})
        assert haproxy.read() == {stable: image.port}
        assert ask(stable) == "here"


def test_a_haproxy_that_starts_by_itself_leads_where_the_last_one_did(haproxy, stable, tmp_path):
    """As its unit starts it after a boot, with the agent dead."""
    folder = tmp_path / "haproxy"
    with images("one", "two") as (one, two):
        haproxy.apply({stable: one.port})
        haproxy.apply({stable: two.port})
        for process in processes(tmp_path):
            os.kill(process, signal.SIGKILL)
        wait_for(lambda: not processes(tmp_path))
        subprocess.run(
            [
                "/usr/sbin/haproxy",
                "-W",
                "-D",
                "-C",
                folder,
                "-S",
                f"unix@{MASTER_SOCKET}",
                "-p",
                PID_FILE,
                "-f",
                CONFIG_FILE,
            ],
            check=True,
        )
        assert ask(stable) == "two"
        wait_for(lambda: haproxy.read() == {stable: two.port})


def test_what_runs_and_what_is_written_must_agree(haproxy, stable, tmp_path):
    """Killed between the two, a port is not turned: the next turn mends it."""
    written = tmp_path / "haproxy" / MAP_FILE
    with images("one", "two") as (one, two):
        haproxy.apply({stable: one.port})
        written.write_text(written.read_text().replace(str(one.port), str(two.port)))
        assert haproxy.read() == {}
        assert ask(stable) == "one"
        haproxy.apply({stable: two.port})
        assert haproxy.read() == {stable: two.port}
        assert ask(stable) == "two"
        written.write_text("somebody was here")
        assert haproxy.read() == {}
        haproxy.apply({stable: two.port})
        assert haproxy.read() == {stable: two.port}


def test_a_port_that_is_taken_is_named(haproxy, tmp_path):
    with images("stranger") as (stranger,):
        with pytest.raises(RouteError, match=rf"does not start: .*{stranger.port}"):
            haproxy.apply({stranger.port: 18500})
        assert haproxy.read() == {}
        assert processes(tmp_path) == []


def test_a_new_slot_on_a_port_that_is_taken_costs_the_others_callers_nothing(haproxy, tmp_path, stable):
    with images("here", "stranger") as (image, stranger):
        haproxy.apply({stable: image.port})
        found = processes(tmp_path)
        with Callers(stable) as callers:
            callers.wait_for("here")
            with pytest.raises(RouteError, match=rf"port {stranger.port} of 127.0.0.1: is taken"):
                haproxy.apply({stable: image.port, stranger.port: image.port})
            callers.wait_for("here")
        assert callers.failed == []
        assert processes(tmp_path) == found, "nothing was loaded anew"
        assert haproxy.read() == {stable: image.port}


def test_a_haproxy_that_fails_to_load_anew_is_not_waited_for(monkeypatch, tmp_path, stable):
    """Somebody took the port after it was tried: the slots that were led are cut until they are brought back."""
    monkeypatch.setattr(HaproxyRoute, "_check_free", lambda *_: None)
    route = haproxy_route(tmp_path, timeout=60.0)
    try:
        with images("here", "stranger") as (image, stranger):
            route.apply({stable: image.port})
            began = time.monotonic()
            with pytest.raises(RouteError, match="did not take its new configuration"):
                route.apply({stable: image.port, stranger.port: image.port})
            assert time.monotonic() - began < 55, "it was not waited for to the end"
            assert ask(stable) == "here"
            route.apply({stable: image.port})
            assert route.read() == {stable: image.port}
    finally:
        route.clear()
    assert processes(tmp_path) == []


def test_a_unit_that_does_not_start_it_is_told(tmp_path, stable):
    route = haproxy_route(tmp_path, by_unit=True, timeout=0.3)
    with pytest.raises(RouteError, match="is not started by its unit"):
        route.apply({stable: 18500})


def test_it_outlives_whoever_started_it_and_goes_when_it_is_cleared(tmp_path, stable):
    script = (
        "import sys; from pathlib import Path; from wherry_agent.route.haproxy import HaproxyRoute\n"
        f"HaproxyRoute(Path({str(tmp_path / 'haproxy')!r})).apply({{{stable}: int(sys.argv[1])}})"
    )
    with images("here") as (image,):
        starter = ["setsid", "/usr/bin/env", "python3", "-c", script, str(image.port)]
        subprocess.run([*starter[:2], sys.executable, *starter[3:]], check=True)
        assert ask(stable) == "here"
        route = haproxy_route(tmp_path)
        assert route.read() == {stable: image.port}
        route.clear()
        assert processes(tmp_path) == []
        assert not (tmp_path / "haproxy").exists()
        assert ask(stable) == "ConnectionRefusedError"


def test_it_counts_requests_failures_and_latencies_of_each_image(haproxy, stable):
    with images("one", "two", seconds=0.02) as (one, two):
        haproxy.apply({stable: one.port})
        assert haproxy.answers(two.port) is None
        assert [ask(stable), ask(stable), ask(stable, "/fails")] == ["one", "one", "500"]
        counters = read_counters(haproxy.answers(one.port).document("m"), "m")
        assert (counters.requests, counters.failures, sum(counters.latency)) == (2, 1, 2)
        assert 40_000 <= counters.latency_sum_us < 2_000_000
        haproxy.apply({stable: two.port})
        assert ask(stable) == "two"
        assert haproxy.answers(one.port).requests == 2
        two.die()
        assert ask(stable) == "503"
        counters = read_counters(haproxy.answers(two.port).document("m"), "m")
        assert (counters.requests, counters.failures) == (1, 1), "an image that does not answer fails its callers"


def test_waiting_is_not_the_images_latency(haproxy, stable):
    with images("late") as (image,):
        haproxy.apply({stable: None})
        caller = threading.Thread(target=ask, args=(stable,))
        began = time.monotonic()
        caller.start()
        time.sleep(1.0)
        haproxy.apply({stable: image.port})
        caller.join(20)
        took_us = (time.monotonic() - began) * 1_000_000
        assert 0 < haproxy.answers(image.port).latency_sum_us < took_us - 800_000


def test_a_reload_counts_from_zero_as_another_process_after_it_was_read(tmp_path, stable):
    seen: list[Mapping[str, Any]] = []
    route = haproxy_route(tmp_path, before_reload=lambda: seen.append(route.answers(image.port).document("m")))
    try:
        with images("here") as (image,):
            route.apply({stable: image.port})
            assert ask(stable) == "here"
            route.apply({stable: image.port, free_port(): image.port})
            assert [ask(stable), ask(stable)] == ["here", "here"]
            before, after = (read_counters(d, "m") for d in (seen[0], route.answers(image.port).document("m")))
            assert (before.requests, change(before, after).requests) == (1, 2)
    finally:
        route.clear()


def test_without_haproxy_it_says_so(monkeypatch, tmp_path, stable):
    monkeypatch.setattr("wherry_agent.route.haproxy_process._PATH", "/nonexistent")
    assert lacks() == "is not installed"
    with pytest.raises(RouteError, match="haproxy: is not installed"):
        haproxy_route(tmp_path).apply({stable: 18500})


# -- both together ----------------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Any]:
    made = []

    def make(setting: str = "auto", lacking: str = "", holds: bool = True, haproxy: HaproxyRoute | None = None) -> Any:
        kernel = KernelRoute(TABLE)
        made.append(BothRoutes(kernel, haproxy or haproxy_route(tmp_path), setting, lambda: lacking, holds))
        return made[-1]

    yield make
    for route in made:
        route.clear()


def turned(route: BothRoutes, stable: int, image: Image, release: TrustedImage) -> tuple[str | None, str]:
    """Turn a port; the way it is led by then and who answers."""
    route.turn({stable: Target(image.port, release)})
    assert route.read() == {stable: image.port}
    return route.ways().get(stable), ask(stable)


def test_each_image_goes_the_way_that_it_needs_and_a_slot_may_change_it(both, stable, tmp_path):
    route = both()
    with images("one", "two", "three") as (one, two, three):
        assert turned(route, stable, one, DRAINS) == ("kernel", "one")
        assert processes(tmp_path) == [], "haproxy is not started for what does not need it"
        assert turned(route, stable, two, CUSTOM) == ("haproxy", "two")
        assert turned(route, stable, three, DRAINS) == ("kernel", "three")
        route.drop([stable])
        assert ask(stable) == "ConnectionRefusedError"
        assert processes(tmp_path) == []


def test_callers_of_a_kernel_slot_wait_too_and_go_on_by_the_kernel(both, stable):
    route = both()
    with images("old", "new") as (old, new):
        turned(route, stable, old, DRAINS)
        assert route.hold(stable, DRAINS)
        assert route.held(stable)
        assert route.read() == {}
        said: list[str] = []
        callers = [threading.Thread(target=lambda: said.append(ask(stable))) for _ in range(5)]
        for caller in callers:
            caller.start()
        old.die()
        time.sleep(0.3)
        assert said == []
        assert turned(route, stable, new, DRAINS) == ("kernel", "new")
        for caller in callers:
            caller.join(20)
        assert said == ["new"] * 5
        assert not route.held(stable)


def test_an_agent_that_starts_again_finds_callers_waiting(both, stable, tmp_path):
    with images("old", "new") as (old, new):
        before = both()
        turned(before, stable, old, DRAINS)
        before.hold(stable, DRAINS)
        again = both()
        assert again.held(stable)
        assert again.read() == {}
        assert turned(again, stable, new, DRAINS) == ("kernel", "new")


@pytest.mark.parametrize(
    ("lacking", "holds", "release"),
    [("is not installed", True, DRAINS), ("", False, DRAINS), ("", True, make_image(3, runtime="custom", gates=[]))],
    ids=["no haproxy", "not wanted", "may speak anything"],
)
def test_where_callers_cannot_wait_nothing_changes(both, stable, lacking, holds, release):
    route = both(lacking=lacking, holds=holds)
    with images("old") as (old,):
        turned(route, stable, old, release)
        assert not route.hold(stable, release)
        assert route.read() == {stable: old.port}
        assert ask(stable) == "old"


def test_a_haproxy_that_does_not_work_is_no_reason_not_to_serve(both, stable, tmp_path, caplog):
    """The agent's unit is there, but nothing starts haproxy."""
    route = both(haproxy=haproxy_route(tmp_path, by_unit=True, timeout=0.2))
    with images("here") as (image,):
        assert turned(route, stable, image, CUSTOM) == ("kernel", "here")
        assert "haproxy failed" in caplog.text
        assert not route.hold(stable, CUSTOM)
        assert ask(stable) == "here"


def test_the_agents_own_restart_changes_no_way(both, stable):
    with images("here") as (image,):
        turned(both(), stable, image, CUSTOM)
        route = both()
        assert route.read() == {stable: image.port}
        assert route.ways() == {stable: "haproxy"}


def test_what_is_under_way_by_haproxy_is_waited_for_but_not_for_ever(both, stable):
    route, said = both(), []
    with images("slow", seconds=1.5) as (slow,):
        turned(route, stable, slow, CUSTOM)
        slow.asked.clear()
        caller = threading.Thread(target=lambda: said.append(ask(stable)))
        caller.start()
        assert slow.asked.wait(10)
        began = time.monotonic()
        route.drain(slow.port, 0.2)
        assert said == []
        route.drain(slow.port, 20)
        caller.join(20)
        assert said == ["slow"]
        assert time.monotonic() - began < 15


def test_what_haproxy_counts_can_be_read_as_a_model_servers_own_statistics(both, stable):
    route = both()
    with images("here") as (image,):
        turned(route, stable, image, CUSTOM)
        assert read_counters(route.statistics(image.port, "m"), "m").requests == 1
        assert route.statistics(1, "m") is None
