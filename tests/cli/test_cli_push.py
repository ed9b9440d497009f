"""`wherry package` and `wherry push`: what they ask of packaging, and what becomes of its answer."""

from __future__ import annotations

import pytest
import typer

from wherry.errors import ModelError
from wherry.identity import sha256_digest
from wherry_cli.main import app
from wherry_cli.packaging.package_file import PackagedImage, PackagedLayer, PackageFile
from wherry_cli.packaging.progress import Progress


@pytest.fixture
def orders(monkeypatch, tmp_path):
    """Packaging, replaced: the orders it got. The working directory holds the model files that the tests name."""
    found = []
    monkeypatch.chdir(tmp_path)
    for name in ("m.onnx", "broken.onnx"):
        tmp_path.joinpath(name).touch()

    def package(order, report):
        found.append(order)
        if order.model and "broken" in order.model.name:
            raise ModelError(f"model {order.model}", "has an operator nobody knows")
        report(Progress("base layer", 0, 1, "unpacking Debian packages"))
        report(Progress("base layer", 0, 1, "unpacking Debian packages"))
        report(Progress("base layer", 1, 1, "built"))
        report(Progress("model layer", 1_000_000, 2_300_000))
        report(Progress("model layer", 2_300_000, 2_300_000))
        report(Progress("model layer", 2_300_000, 2_300_000, "sent"))
        repository = f"{order.registry}/wherry/{order.name}" if order.registry else ""
        images = [
            PackagedImage(
                model=order.name, version=order.version, profile=profile, platform="linux/amd64",
                repository=repository, digest=sha256_digest((order.version + profile).encode()), manifest_bytes=99,
                config_digest=sha256_digest(b"c"), unpacked_bytes=9_000_000, download_bytes=3_400_000,
                layers=[PackagedLayer(kind="model", digest=sha256_digest(b"m"), size=2_300_000, unpacked=2_300_000)],
                runtime="onnx", provider="CPUExecutionProvider", precision="fp32",
            )
            for profile in order.profiles
        ]  # fmt: skip
        return PackageFile(model=order.name, version=order.version, images=images)

    monkeypatch.setattr("wherry_cli.packaging.command.package", package)
    return found


PUSH = ("push", "m.onnx", "--name", "vision", "--version", "2", "--profile", "generic-amd64", "--to", "all")


@pytest.fixture
def owner(operator, server, make):
    server.devices = {"edge-1": make.device("edge-1")}
    assert operator("keys", "init").code == 0
    server.requests.clear()
    return operator


def test_package_hands_every_option_over(wherry, orders, home):
    answer = wherry(
        "package", "m.onnx", "--name", "vision", "--version", "2", "--profile", "generic-amd64",
        "--profile", "jetson-orin", "--registry", "127.0.0.1:5470", "--golden", "g.json", "--shape", "x=1,3,8,8",
        "--stage", "qa", "--output", "out", "--precision", "fp16", "--memory", "300", "--cpus", "1.5",
        "--start-seconds", "90", "--base", "debian", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.out
    assert answer.json["file"] == "out/package.json"
    [order] = orders
    assert (order.name, order.version, order.profiles) == ("vision", "2", ("generic-amd64", "jetson-orin"))
    assert (str(order.model), str(order.golden), str(order.output)) == ("m.onnx", "g.json", "out")
    assert (order.registry, order.shapes, order.precision) == ("127.0.0.1:5470", {"x": (1, 3, 8, 8)}, "fp16")
    assert (order.release.stage, order.release.memory_mb, order.release.cpus) == ("qa", 300, "1.5")
    assert (order.release.start_seconds, order.base) == (90, "debian")


def test_package_without_more_words_uses_the_login_and_the_home(operator, orders, home):
    answer = operator("package", "m.onnx", "--name", "vision", "--version", "2", "--profile", "generic-amd64")
    assert orders[0].registry == "127.0.0.1:5470"
    assert orders[0].output == home / "packages" / "vision-2"
    assert "Packaged vision 2" in answer.out
    assert answer.err.splitlines() == [
        "base layer: unpacking Debian packages",
        "base layer: built",
        "model layer: 2.3 MB",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--name", "vision", "--version", "2"], "the model file is missing"),
        (["nofile.onnx", "--name", "vision", "--version", "2"], "model file nofile.onnx does not exist"),
        ([".", "--name", "vision", "--version", "2"], "model file . is a folder"),
        (["m.onnx", "--from-image", "r/x:1", "--name", "vision", "--version", "2"], "both given"),
        (["m.onnx", "--name", "../etc", "--version", "2"], "is not a usable name"),
        (["m.onnx", "--name", "vision", "--version", "2 beta"], "is not a usable name"),
        (["m.onnx", "--name", "vision", "--version", "2", "--cpus", "many"], "cpus 'many'"),
        (["m.onnx", "--name", "vision", "--version", "2", "--memory", "1"], "memory_mb 1"),
        (["m.onnx", "--name", "vision", "--version", "2", "--shape", "x=big"], "INPUT=1,3,224,224"),
    ],
)
def test_package_refuses_what_cannot_be_meant(operator, orders, options, words):
    answer = operator("package", *options, "--profile", "generic-amd64")
    assert answer.code == 1
    assert words in answer.err
    assert orders == []


def test_a_model_that_cannot_be_packaged(operator, orders):
    answer = operator("package", "broken.onnx", "--name", "v", "--version", "2", "--profile", "generic-amd64", "--json")
    assert answer.json["error"]["code"] == "input.model"


def test_push_does_everything_in_one_go(owner, server, orders):
    answer = owner(*PUSH, "--slot", "camera", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["published"]["images"][0]["counter"] == 1
    assert answer.json["rollout"]["slot"] == "camera"
    assert answer.json["package"].endswith("packages/vision-2/package.json")
    assert [item.version for item in server.releases] == ["2"]
    sent = server.bodies("POST", "/v1/rollouts")[0]
    assert (sent["model"], sent["version"], sent["selector"]["everything"]) == ("vision", "2", True)


def test_push_and_start_tell_first_what_may_not_be_meant(owner, server, orders):
    server.notes = ["It replaces filetype 2 in slot main on 3 devices."]
    assert owner(*PUSH).err.splitlines()[-1] == f"Note: {server.notes[0]}"
    answer = owner("rollout", "start", "vision", "2", "--to", "all", "--json")
    assert answer.json["version"] == "2"
    assert answer.err == f"Note: {server.notes[0]}\n"


def test_push_for_a_profile_that_no_selected_device_has_stops_before_packaging(owner, orders):
    answer = owner(*PUSH[:-4], "--profile", "jetson-nano", "--to", "all")
    assert answer.code == 1
    assert "fits no selected device: 1 selected, of profile generic-amd64" in answer.err
    assert orders == []
    assert "no selected device has profile jetson-nano yet" in owner(*PUSH, "--profile", "jetson-nano").err


def test_push_and_watch(owner, server, orders, make):
    done = make.deployment("edge-1", ["admitted", "committed"])
    server.script = [make.rollout(1, "vision", "2", "completed", targets=[make.target("edge-1", "committed", done)])]
    answer = owner(*PUSH, "--watch")
    assert answer.code == 0, answer.err
    assert "Published vision 2" in answer.out
    assert "edge-1: committed after 3.2 s" in answer.out
    assert answer.out.splitlines()[-1] == "completed: 1 of 1 device committed"


def test_push_that_a_device_rejects_fails_and_says_why(owner, server, orders, make):
    problem = make.problem(code="deployment.gate", thing="vision 2", reason="golden gate", fix="Correct it")
    bad = make.target("edge-1", "rejected", make.deployment("edge-1", ["rejected"], problem=problem))
    server.script = [make.rollout(1, "vision", "2", "failed", targets=[bad])]
    answer = owner(*PUSH, "--watch", "--json")
    assert answer.code == 1
    assert answer.lines[-1]["rollout"]["targets"][0]["state"] == "rejected"
    assert answer.lines[-1]["published"]["version"] == "2"


def test_push_a_ready_made_image(owner, orders):
    options = ("--name", "vision", "--version", "3", "--profile", "generic-amd64", "--to", "all")
    assert owner("push", "--from-image", "127.0.0.1:5470/you/vision:3", *options, "--health-path", "/up").code == 0
    assert (orders[0].model, orders[0].from_image) == (None, "127.0.0.1:5470/you/vision:3")
    assert orders[0].release.health_path == "/up"


def test_push_finds_out_early_that_it_cannot_end_well(operator, server, orders, make, monkeypatch):
    assert "wherry keys init" in operator(*PUSH).err
    operator("keys", "init")
    assert "selects no device" in operator(*PUSH).err
    server.devices = {"edge-1": make.device("edge-1", revoked=True), "edge-2": make.device("edge-2")}
    assert "selects no device" in operator(*PUSH[:-1], "device=edge-1").err
    assert "names no devices" in operator(*PUSH[:-1], "everyone").err
    assert orders == []
    assert server.bodies("POST", "/v1/rollouts") == []


def test_push_looks_for_the_model_before_it_looks_for_devices(operator, server, orders):
    assert "nofile.onnx does not exist" in operator("push", "nofile.onnx", *PUSH[2:-1], "everyone").err
    assert server.requests == []


def test_package_and_push_take_the_same_options():
    commands = typer.main.get_command(app).commands

    def options(name):
        return {flag for parameter in commands[name].params for flag in parameter.opts}

    assert options("push") - options("package") == {"--to", "--slot", "--watch", "--timeout"}
    assert options("package") <= options("push")


def test_push_needs_a_registry(owner, server, home, orders):
    config = home / "config.toml"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if "registry" not in line))
    assert "--registry is missing" in owner(*PUSH).err
    assert orders == []


def test_push_warns_of_devices_that_get_no_image(owner, server, orders, make):
    server.devices["nano-1"] = make.device("nano-1", profile="jetson-nano")
    answer = owner(*PUSH)
    assert answer.code == 0
    assert "Warning: selected but not packaged for: 1 of profile jetson-nano (nano-1)." in answer.err
