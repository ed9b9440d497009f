"""Every command against a server that speaks the API: what it sends, what it shows, that its JSON parses."""

from __future__ import annotations

import hashlib
import stat
from datetime import timedelta

import pytest

from wherry.join import JoinToken


@pytest.fixture
def fleet(server, make):
    problem = make.problem(code="trust.expired", thing="assignment", reason="expired", fix="Check the clock")
    late = make.started - timedelta(days=3)
    server.devices = {
        "edge-1": make.device("edge-1"),
        "edge-2": make.device("edge-2", drift=["main"], desired={"main": make.ref("2")}, problem=problem),
        "edge-3": make.device("edge-3", online=False, last_seen=late, slots=[], desired={}, labels={}),
        "edge-4": make.device("edge-4", revoked=True),
        "edge-5": make.device("edge-5", online=False, last_seen=None, slots=[]),
    }
    return server


def test_device_list_walks_all_pages(operator, fleet):
    answer = operator("device", "list")
    assert [line.split()[0] for line in answer.out.splitlines()[1:6]] == [f"edge-{n}" for n in range(1, 6)]
    assert "!  edge-2  assignment expired. Check the clock." in answer.out
    assert "main: vision 1" in answer.out
    assert "never seen" in answer.out
    found = operator("device", "list", "--json").json["items"]
    assert [item["id"] for item in found] == [f"edge-{n}" for n in range(1, 6)]


def test_device_list_of_an_empty_fleet_says_what_to_do(operator):
    assert "wherry device token" in operator("device", "list").out
    assert operator("device", "list", "--json").json == {"items": []}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--online"], ["edge-1", "edge-2", "edge-4"]),
        (["--offline"], ["edge-3", "edge-5"]),
        (["--search", "e-3"], ["edge-3"]),
        (["--state", "drifting"], ["edge-2"]),
    ],
)
def test_device_list_is_narrowed_by_the_server(operator, fleet, options, found):
    answer = operator("device", "list", *options, "--json")
    assert [item["id"] for item in answer.json["items"]] == found


def test_device_list_takes_several_labels(operator, fleet):
    fleet.queries.clear()
    operator("device", "list", "--label", "site=north", "--label", "row=2")
    assert fleet.queries[0][1]["label"] == ["site=north", "row=2"]
    assert "No device is like that." in operator("device", "list", "--search", "nothing").out


def test_device_show(operator, fleet, make):
    report = make.deployment("edge-2", ["admitted", "rejected"]).model_dump(mode="json")
    fleet.deployments = [{"device": "edge-2", "deployment": report}]
    shown = operator("device", "show", "edge-2").out
    for part in ("generic-amd64", "site=north", "127.0.0.1:18080", "vision 2", "rejected", "expired. Check the clock."):
        assert part in shown
    assert operator("device", "show", "edge-2", "--json").json["deployments"][0]["device"] == "edge-2"


def test_device_label_changes_some_and_keeps_the_others(operator, fleet):
    assert operator("device", "label", "edge-1", "row=2", "gpu=", "site-").out == "edge-1: gpu=, row=2\n"
    assert fleet.bodies("PATCH", "/v1/devices/edge-1") == [{"labels": {"row": "2", "gpu": ""}}]
    assert operator("device", "label", "edge-1", "site=south", "--json").json["labels"]["site"] == "south"


def test_device_revoke_asks_first(operator, fleet):
    refused = operator("device", "revoke", "edge-1")
    assert refused.code == 1
    assert "--yes" in refused.err
    assert fleet.bodies("DELETE", "/v1/devices/edge-1") == []
    assert operator("device", "revoke", "edge-1", "--yes").code == 0
    assert operator("device", "revoke", "edge-1", "--yes", "--json").json == {"device": "edge-1", "revoked": True}


@pytest.mark.parametrize("command", ["remove", "revoke"])
def test_who_shuts_a_device_out_is_advised_to_give_its_replacement_another_id(operator, fleet, command):
    done = operator("device", command, "edge-1", "--yes")
    assert done.code == 0
    assert "If it may be in wrong hands, give its replacement another id" in " ".join(done.out.split())
    assert operator("device", command, "edge-1", "--yes", "--json").json == {"device": "edge-1", f"{command}d": True}


def test_device_retry_takes_the_desired_digest(operator, fleet, make):
    assert operator("device", "retry", "edge-2").code == 0
    assert fleet.bodies("POST", "/v1/devices/edge-2/retry") == [{"slot": "main", "digest": make.digest}]
    nothing = operator("device", "retry", "edge-2", "--slot", "other", "--json")
    assert nothing.json["error"]["fix"] == "Slots with one: main"


def test_device_poll_and_clear(operator, fleet):
    assert operator("device", "poll", "edge-1", "--json").json["polled"]
    fleet.devices["edge-1"].online = False
    assert "it is offline, so it does that when it comes back" in operator("device", "poll", "edge-1").out
    assert operator("device", "clear", "edge-1", "main", "--yes", "--json").json["cleared"]
    assert ("DELETE", "/v1/devices/edge-1/slots/main", None) in fleet.requests


def test_device_token_prints_the_join_line_alone(operator, server, home):
    home.joinpath("repository").mkdir(parents=True)
    home.joinpath("repository/1.root.json").write_bytes(b"{root}")
    answer = operator("device", "token", "edge-9", "--profile", "generic-amd64", "--label", "site=north")
    join = JoinToken.decode(answer.out)
    assert answer.out.count("\n") == 1
    assert "wherry-agent enroll" in answer.err
    assert (join.server, join.device, join.secret) == (server.url, "edge-9", "s3cret")
    assert join.ca_sha256 == server.ca_sha256
    assert join.root_sha256 == hashlib.sha256(b"{root}").hexdigest()
    sent = server.bodies("POST", "/v1/tokens")[0]
    assert sent == {"device": "edge-9", "profile": "generic-amd64", "labels": {"site": "north"}, "hours": 24}
    assert JoinToken.decode(operator("device", "token", "edge-9", "--json").json["join"]) == join


def test_device_token_needs_the_owners_root(operator, server):
    answer = operator("device", "token", "edge-9")
    assert answer.code == 1
    assert "wherry keys init" in answer.err
    assert server.requests == []  # no token is wasted


def test_device_token_refuses_a_name_no_device_can_have(operator):
    error = operator("device", "token", "Edge_9", "--json").json["error"]
    assert error["thing"] == "device 'Edge_9'"
    assert "lower-case" in error["fix"]


@pytest.fixture
def released(server, make):
    server.releases = [make.release("vision", "2", "generic-amd64", 2)]
    return server


def test_release_list_and_show(operator, released):
    assert "vision 2" in operator("release", "list").out
    shown = operator("release", "show", "vision", "2").out
    assert "generic-amd64" in shown
    assert "127.0.0.1:5470/wherry/vision@sha256:abab" in shown
    released.releases[0].images[0].layers = {"base": 1_000_000, "model": 3_000_000}
    shown = operator("release", "show", "vision", "2").out
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == ["model", "base"]
    assert "75 %" in shown
    assert operator("release", "show", "vision", "2", "--json").json["images"][0]["counter"] == 2
    assert operator("release", "list", "--json").json["items"][0]["version"] == "2"
    assert "never published" in operator("release", "show", "vision", "3").err


@pytest.mark.parametrize(
    ("to", "selector"),
    [
        (["all"], {"everything": True}),
        (["label=site=north", "label=row=2"], {"labels": {"site": "north", "row": "2"}}),
        (["profile=generic-amd64", "device=edge-1"], {"profiles": ["generic-amd64"], "ids": ["edge-1"]}),
    ],
)
def test_rollout_start_reads_the_selection(operator, released, to, selector):
    options = [part for text in to for part in ("--to", text)]
    answer = operator("rollout", "start", "vision", "2", *options, "--json")
    empty = {"ids": [], "profiles": [], "labels": {}, "everything": False}
    assert answer.json["selector"] == {**empty, **selector}


@pytest.mark.parametrize("to", [["everyone"], ["all", "device=a"], ["label=site"], ["device="], ["device=A B"]])
def test_rollout_start_refuses_a_selection_it_cannot_read(operator, released, to):
    answer = operator("rollout", "start", "vision", "2", *[part for text in to for part in ("--to", text)])
    assert answer.code == 1
    assert answer.err.startswith("Error: --to")
    assert released.rollouts == {}


def test_rollout_list_show_and_control(operator, released, make):
    operator("rollout", "start", "vision", "2", "--to", "all")
    assert "all devices" in operator("rollout", "list").out
    assert operator("rollout", "list", "--json").json["items"][0]["id"] == 1
    assert "Rollout 1: vision 2" in operator("rollout", "show", "1").out
    assert "paused" in operator("rollout", "pause", "1").out
    assert operator("rollout", "resume", "1", "--json").json["state"] == "running"
    assert operator("rollout", "abort", "1").code == 1
    assert operator("rollout", "abort", "1", "--yes", "--json").json["state"] == "aborted"
    assert operator("rollout", "retry", "1", "--json").json["state"] == "running"
    released.rollouts[1].state = "completed"
    assert operator("rollout", "pause", "1", "--json").json["error"]["code"] == "conflict"
    assert operator("rollout", "show", "9").code == 1


def test_watching_a_good_rollout_tells_its_story(operator, released, make):
    done = make.deployment("edge-1", ["admitted", "fetching", "committed"])
    released.script = [
        make.rollout(1, "vision", "2", targets=[make.target("edge-1", "pending")]),
        make.rollout(1, "vision", "2", "completed", targets=[make.target("edge-1", "committed", done)]),
    ]
    answer = operator("rollout", "start", "vision", "2", "--to", "all", "--watch")
    assert answer.code == 0, answer.err
    told = [line[10:] if line[2] == ":" else line for line in answer.out.splitlines()]
    assert told == [
        "Rollout 1: vision 2 to slot main of all devices",
        "edge-1: pending",
        "edge-1: admitted",
        "edge-1: fetching",
        "edge-1: committed after 3.2 s",
        "completed: 1 of 1 device committed",
    ]


def test_watching_a_bad_rollout_fails(operator, released, make):
    problem = make.problem(code="deployment.gate", thing="vision 2", reason="golden gate", fix="Correct it")
    bad = make.target("edge-1", "rejected", make.deployment("edge-1", ["rejected"], problem=problem))
    released.rollouts[1] = make.rollout(1, "vision", "2", "failed", targets=[bad])
    answer = operator("rollout", "watch", "1", "--json")
    assert answer.code == 1
    assert [line["event"] for line in answer.lines] == ["rollout", "device", "end"]
    assert answer.lines[1]["deployment"]["problem"]["reason"] == "golden gate"
    end = answer.lines[-1]
    assert (end["ok"], end["settled"], end["targets"][0]["state"]) == (False, True, "rejected")
    assert "golden gate" in operator("rollout", "watch", "1").out


def test_watching_nobody_is_a_failure(operator, released, make):
    released.rollouts[1] = make.rollout(1, "vision", "2", "completed")
    answer = operator("rollout", "watch", "1")
    assert answer.code == 1
    assert "its devices have left the fleet" in answer.out


def test_watching_ends_when_its_time_is_up(operator, released, make):
    released.rollouts[1] = make.rollout(1, "vision", "2", targets=[make.target("edge-1", "pending")])
    answer = operator("rollout", "watch", "1", "--timeout", "0s")
    assert answer.code == 1
    assert "rollout 1 goes on" in answer.err
    assert "wherry rollout watch 1" in answer.err


def test_ctrl_c_leaves_the_rollout_running(operator, released, make, monkeypatch):
    released.rollouts[1] = make.rollout(1, "vision", "2", targets=[make.target("edge-1", "pending")])

    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("wherry_cli.looking.time.sleep", interrupt)
    answer = operator("rollout", "watch", "1")
    assert answer.code == 130
    assert "rollout 1 goes on" in answer.err
    assert all(method == "GET" for method, *_ in released.requests)


def test_watching_lives_through_a_server_that_is_away(operator, released, make, monkeypatch):
    monkeypatch.setattr("wherry_cli.client.RETRY_WAITS", ())
    monkeypatch.setattr("wherry_cli.follow.LOOK_SECONDS", 0)
    pending = make.rollout(1, "vision", "2", targets=[make.target("edge-1", "pending")])
    done = make.rollout(1, "vision", "2", "completed", targets=[make.target("edge-1", "committed")])
    released.rollouts[1], released.script = pending, [pending, pending, done]
    released.failing = [0, 0, 502, 502]
    answer = operator("rollout", "watch", "1")
    assert answer.code == 0, answer.err
    assert answer.out.count("trying again") == 1  # said once, not at every look
    assert answer.out.splitlines()[-1] == "completed: 1 of 1 device committed"


def test_telemetry_show(operator, server, make):
    at = make.started.isoformat()
    slot = {
        "device": "edge-1", "slot": "main", "model": "vision", "version": "2", "counter": 2, "first": at, "last": at,
        "requests": 12345, "failures": 2, "p50_us": 850, "p95_us": 1900, "p99_us": 250000, "mean_us": 900,
    }  # fmt: skip
    host = {
        "device": "edge-1", "at": at, "cpu_percent": 7.4, "memory_used_bytes": 2_000_000_000,
        "memory_total_bytes": 8_000_000_000, "disk_used_bytes": 1, "disk_total_bytes": 0, "temperatures": {"cpu": 51.0},
        "watts": {"VDD_IN": 6.24}, "throttled": ["under-voltage"], "throttled_since_boot": ["throttled"],
        "gpu_percent": 48.2, "wear_percent": {"mmcblk0": 30.0},
    }  # fmt: skip
    server.telemetry = {"slots": [slot], "hosts": [host], "received": {"slot": 40}, "dropped": {"host": 3}}
    shown = operator("telemetry", "show", "--device", "edge-1", "--since", "15m").out
    for part in ("12,345", "0.85 ms", "250 ms", "7 %", "25 % of 8.0 GB", "cpu 51 °C", "drop 3 host"):
        assert part in shown
    for part in ("slowed by", "under-voltage", "GPU 48 %", "VDD_IN 6.2 W", "mmcblk0 30 %"):
        assert part in shown, shown
    assert operator("telemetry", "show", "--json").json["slots"][0]["requests"] == 12345
    assert "90s, 15m" in operator("telemetry", "show", "--since", "yesterday").err


def test_telemetry_of_nothing(operator, server):
    assert "No inference in the last 1h." in operator("telemetry", "show").out


def test_profile_list_and_show(wherry):
    assert "raspberry-pi-5" in wherry("profile", "list").out
    assert {item["name"] for item in wherry("profile", "list", "--json").json["items"]} >= {"jetson-orin"}
    assert "aarch64" in wherry("profile", "show", "jetson-orin").out
    assert wherry("profile", "show", "generic-amd64", "--json").json["platform"] == "linux/amd64"
    assert "Use one of" in wherry("profile", "show", "toaster").err


def test_version(wherry):
    assert wherry("--version").out == "wherry 0.1.0\n"


def test_settings_are_private_and_stay_with_the_next_login(operator, server, home, tmp_path, make):
    assert stat.S_IMODE(home.joinpath("config.toml").stat().st_mode) == 0o600
    answer = operator("login", "--server", server.url + "/", "--token", make.token, "--ca-file", tmp_path / "ca.pem")
    assert "Registry: 127.0.0.1:5470" in answer.out  # kept although not given again
    assert 'server = "' + server.url + '"' in home.joinpath("config.toml").read_text()
