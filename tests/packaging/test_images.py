"""Images: same input, same digest; a new version moves the model layer alone; the release says all that is needed."""

import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wherry.errors import FitError, InputError, RegistryError
from wherry.identity import sha256_digest
from wherry.release import (
    GoldenFile,
    GoldenGate,
    HttpGate,
    MemoryGate,
    ModelFile,
    RehearsalGate,
    RunSpec,
    TcpGate,
)
from wherry_cli.packaging.app_layer import serving_layer
from wherry_cli.packaging.base import Base
from wherry_cli.packaging.build import ImageOptions, ProgramLayers, assemble, build_image, check_size
from wherry_cli.packaging.command import PackageOrder, package, parse_shapes
from wherry_cli.packaging.from_image import ReadyMade, rebuild_image
from wherry_cli.packaging.gates import gates, parse_gate
from wherry_cli.packaging.golden import golden_bytes
from wherry_cli.packaging.layers import Entry, make_layer
from wherry_cli.packaging.model import ModelWishes, read_model
from wherry_cli.packaging.package_file import PackageFile, read_package_file
from wherry_cli.packaging.progress import Progress
from wherry_cli.packaging.push import image_tag, model_repository, push_image, save_oci_layout
from wherry_cli.packaging.registry import RegistryClient
from wherry_cli.packaging.release import ReleaseOptions, Served, check_fit, packaged_image, run_spec
from wherry_cli.packaging.store import Store

L4T = {
    "config": {
        "Labels": {
            "io.wherry.l4t": "36", "io.wherry.sm": "87", "io.wherry.cuda": "12", "io.wherry.tensorrt": "10, 11",
            "io.wherry.runtime": "onnx",
        }
    }
}  # fmt: skip


@pytest.fixture
def build(profiles, make_model):
    """Build an image on small stand-ins for base and runtime."""

    def build(store, profile="generic-amd64", version="1", scale=1.0, config=None, **options):
        source = read_model(make_model(f"{version}.onnx", scale), "vision", version)
        base = Base((make_layer("base", [Entry("etc/base", data=b"base")], store),), config or {})
        runtime = make_layer("runtime", [Entry("opt/wherry/runtime/x.py", data=b"runtime")], store)
        return build_image(
            source,
            profiles[profile],
            base,
            ProgramLayers(runtime, serving_layer(store)),
            store,
            ImageOptions(**options),
        )

    return build


def read_member(archive, item) -> bytes:
    file = archive.extractfile(item)
    return file.read() if file else b""


def golden_gate(image) -> GoldenGate:
    (found,) = (gate for gate in image.gates if isinstance(gate, GoldenGate))
    return found


def served(built, precision="fp32"):
    labels = built.labels
    return Served(
        labels["io.wherry.model"],
        labels["io.wherry.version"],
        labels["io.wherry.runtime"],
        labels["io.wherry.provider"],
        precision,
        None,
    )


# -- building


def test_the_same_input_gives_the_same_digest(tmp_path, build):
    first, second = (build(Store(tmp_path / name)) for name in ("one", "two"))
    assert first.digest == second.digest
    assert (first.manifest, first.config) == (second.manifest, second.config)


def test_a_new_version_changes_the_model_layer_alone(store, build):
    first, second = build(store, version="1"), build(store, version="2", scale=2)
    assert [layer.kind for layer in first.layers] == ["base", "runtime", "serving", "model"]
    same = [old.digest == new.digest for old, new in zip(first.layers, second.layers, strict=True)]
    assert same == [True, True, True, False]
    assert first.digest != second.digest


def test_the_configuration_is_what_server_and_agent_expect(build, store):
    built = build(store)
    config = json.loads(built.config)
    run = config["config"]
    assert run["Entrypoint"] == ["/usr/bin/python3", "-m", "wherry_serving"]
    assert run["Cmd"] == ["--models", "/opt/wherry/models", "--port", "8080"]
    assert run["User"] == "65532:65532"
    assert "PYTHONPATH=/opt/wherry/app:/opt/wherry/runtime" in run["Env"]
    assert run["ExposedPorts"] == {"8080/tcp": {}}
    assert run["StopSignal"] == "SIGTERM"
    assert (config["os"], config["architecture"]) == ("linux", "amd64")
    assert run["Labels"]["io.wherry.model"] == "vision"
    assert run["Labels"]["io.wherry.stage"] == "prod"
    assert "WHERRY_STAGE=prod" in run["Env"]
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in built.layers]
    assert len(config["history"]) == len(built.layers)


def test_the_model_layer_is_plain_and_holds_what_the_server_reads(build, store):
    layer = build(store).layers[-1]
    assert layer.media_type == "application/vnd.oci.image.layer.v1.tar"
    with tarfile.open(layer.path) as archive:
        files = {item.name: read_member(archive, item) for item in archive if item.isreg()}
    folder = "opt/wherry/models/vision"
    assert sorted(files) == [f"{folder}/{name}" for name in ("golden.json", "model.json", "model.onnx")]
    described = ModelFile.model_validate_json(files[f"{folder}/model.json"])
    assert (described.name, described.version, described.file) == ("vision", "1", "model.onnx")
    assert len(GoldenFile.model_validate_json(files[f"{folder}/golden.json"]).cases) == 3


def test_serving_layer_is_source_of_server_and_contract_alone(store):
    with tarfile.open(serving_layer(store).path) as archive:
        names = [item.name for item in archive if item.isreg()]
    assert "opt/wherry/app/wherry/tensors.py" in names
    assert "opt/wherry/app/wherry_serving/__main__.py" in names
    assert all(name.endswith(".py") and name.startswith("opt/wherry/app/wherry") for name in names)


# -- what the release says


def test_gates_and_needs_follow_from_the_image(build, store):
    built = build(store)
    image = packaged_image(built, served(built, "int8"), "r:1/wherry/vision", ReleaseOptions())
    assert [gate.kind for gate in image.gates] == ["ready", "golden", "memory", "soak"]
    golden = golden_gate(image)
    assert (golden.tolerance, golden.cosine, golden.cases) == ("0.05", "0.99", 3)
    assert golden.digest == sha256_digest(built.golden)
    assert image.manifest_bytes == len(built.manifest)
    assert image.unpacked_bytes == sum(layer.unpacked for layer in built.layers)
    assert image.needs.memory_mb == image.run.memory_mb == 256
    release = image.to_release_image(7)
    assert (release.counter, release.target_path()) == (7, "models/vision/generic-amd64/7.manifest.json")
    assert release.to_custom()["gates"][1]["tolerance"] == "0.05"
    assert not release.breaking


def test_gates_that_the_operator_asks_for_come_in_the_order_in_which_they_are_asked(build, store):
    built = build(store)
    chosen = tuple(map(parse_gate, ("shadow:seconds=3", "latency", "memory:percent=50", "rehearsal:by=class")))
    options = ReleaseOptions(gates=chosen, breaking=True)
    image = packaged_image(built, served(built), "r:1/wherry/vision", options)
    kinds = ["ready", "golden", "memory", "latency", "rehearsal", "shadow", "soak"]
    assert [gate.kind for gate in image.gates] == kinds
    found = {gate.kind: gate for gate in image.gates}
    assert (found["memory"].percent, found["latency"].factor, found["rehearsal"].by) == (50, "1.5", "class")
    assert image.to_release_image(1).breaking


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("voodoo", "names no gate 'voodoo'"),
        ("ready", "names no gate 'ready'"),
        ("memory:color=red", "names no setting 'color' of gate memory"),
        ("memory:percent=200", "percent: Input should be less than or equal to 100"),
        ("latency:factor=fast", "factor: String should match pattern"),
    ],
)
def test_a_gate_that_is_not_readable_is_refused_in_words(text, words):
    with pytest.raises(InputError, match=re.escape(words)):
        parse_gate(text)


def test_an_image_that_speaks_no_protocol_is_asked_over_http_or_tcp(build, store):
    plain, run = served(build(store)), RunSpec()
    assert [gate.kind for gate in gates(None, plain, run, None)] == ["http"]
    assert [gate.kind for gate in gates(None, plain, run, None, [TcpGate()])] == ["tcp"]
    assert [gate.kind for gate in gates(None, plain, run, "/up", [TcpGate(), MemoryGate()])] == [
        "http",
        "tcp",
        "memory",
    ]
    with pytest.raises(InputError, match="needs a model server"):
        gates(None, plain, run, None, [RehearsalGate()])


def test_a_base_for_a_gpu_says_what_it_needs(build, store, profiles):
    built = build(store, profile="jetson-orin", config=L4T, provider="TensorrtExecutionProvider")
    image = packaged_image(built, served(built), "r:1/wherry/vision", ReleaseOptions())
    assert (image.needs.l4t, image.needs.sm) == (["36"], ["87"])
    assert (image.needs.cuda, image.needs.tensorrt) == (["12"], ["10", "11"])
    assert image.run.start_seconds == 900, "TensorRT builds its engine at the first start"
    check_fit(image, profiles["jetson-orin"])


def test_an_image_that_its_own_profile_cannot_run_is_refused(build, store, profiles):
    built = build(store, provider="CUDAExecutionProvider")
    image = packaged_image(built, served(built), "", ReleaseOptions())
    with pytest.raises(FitError, match="CUDAExecutionProvider is not among this device's"):
        check_fit(image, profiles["generic-amd64"])


def test_an_image_larger_than_the_profile_allows_is_refused(build, store, profiles):
    profile = profiles["generic-amd64"]
    small = profile.model_copy(update={"capabilities": profile.capabilities.model_copy(update={"image_limit_mb": -1})})
    with pytest.raises(InputError, match="the profile's limit"):
        check_size(build(store), small)


def test_an_image_that_was_only_saved_cannot_be_released(build, store):
    built = build(store)
    with pytest.raises(InputError, match="--registry"):
        packaged_image(built, served(built), "", ReleaseOptions()).to_release_image(1)


# -- pushing and saving


@pytest.mark.registry
def test_a_new_version_moves_model_configuration_and_manifest_alone(client, store, build):
    first, second = build(store, version="1"), build(store, version="2", scale=2)
    push_image(first, client, "wherry/moves", "1")
    pushed = push_image(second, client, "wherry/moves", "2")
    sent = {digest for digest, outcome in pushed.outcomes.items() if outcome == "sent"}
    assert sent == {second.layers[-1].digest, second.config_digest}
    assert pushed.sent_bytes == second.layers[-1].size + len(second.config)
    assert push_image(second, client, "wherry/moves", "2").sent_bytes == 0
    found = client.manifest("wherry/moves", second.digest)
    assert found is not None
    assert found.data == second.manifest


@pytest.mark.registry
def test_layers_that_another_model_has_are_mounted(client, store, build):
    built = build(store, version="7", scale=7)
    push_image(built, client, "wherry/one", "7", store)
    pushed = push_image(built, client, "wherry/two", "7", store)
    assert {pushed.outcomes[layer.digest] for layer in built.layers} == {"mounted"}


def test_an_image_is_saved_in_the_oci_layout(build, store, tmp_path):
    built = build(store)
    save_oci_layout(built, tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "index.json").read_bytes())
    assert index["manifests"][0]["digest"] == built.digest
    assert json.loads((tmp_path / "saved" / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    for blob in (tmp_path / "saved" / "blobs" / "sha256").iterdir():
        assert sha256_digest(blob.read_bytes()) == f"sha256:{blob.name}"
    assert len(list((tmp_path / "saved" / "blobs" / "sha256").iterdir())) == len(built.layers) + 2


def test_names_fit_registries():
    assert image_tag("1.0+b", "generic-amd64") == "1.0-b-generic-amd64"
    assert model_repository("r:1", "a-b.c").name == "r:1/wherry/a-b.c"
    with pytest.raises(InputError, match="OCI repository"):
        model_repository("r:1", "a.-b")


# -- ready-made images


def test_a_ready_made_image_keeps_its_layers_and_gets_golden_cases(build, store, profiles, make_model):
    built = build(store)
    base = Base(built.layers, json.loads(built.config))
    cases = read_model(make_model("other.onnx", 3.0), "vision", "1").cases
    again, found = rebuild_image(ReadyMade("vision", "1", base, cases), profiles["generic-amd64"], store)
    assert again.layers[:-1] == built.layers
    assert again.layers[-1].kind == "golden"
    assert again.golden == golden_bytes("vision", cases) != built.golden
    assert found.signature is not None
    config = json.loads(again.config)
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in again.layers]
    assert config["config"]["Entrypoint"] == ["/usr/bin/python3", "-m", "wherry_serving"]


def test_a_ready_made_image_that_needs_nothing_stays_as_it_is(build, store, profiles):
    built = build(store)
    base = Base(built.layers, json.loads(built.config))
    again, _ = rebuild_image(ReadyMade("vision", "1", base), profiles["generic-amd64"], store)
    assert again.digest == built.digest
    assert again.golden == built.golden


@pytest.mark.parametrize(("name", "version", "words"), [("sound", "1", "serves vision"), ("vision", "2", "version 1")])
def test_a_ready_made_image_of_another_model_is_refused(build, store, profiles, name, version, words):
    built = build(store)
    base = Base(built.layers, json.loads(built.config))
    with pytest.raises(InputError, match=words):
        rebuild_image(ReadyMade(name, version, base), profiles["generic-amd64"], store)


def test_an_image_with_own_code_is_asked_for_its_health_only(store, profiles):
    layer = make_layer("other", [Entry("app/run", data=b"code", mode=0o755)], store)
    config = {"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/app/run"]}}
    built, found = rebuild_image(ReadyMade("own", "1", Base((layer,), config)), profiles["generic-amd64"], store)
    image = packaged_image(built, found, "r:1/wherry/own", ReleaseOptions(health_path="/healthz"))
    assert found.runtime == "custom"
    assert image.gates == [HttpGate(path="/healthz", deadline_seconds=60)]
    assert json.loads(built.config)["config"]["Entrypoint"] == ["/app/run"]
    check_fit(image, profiles["generic-amd64"])


# -- the whole command


@pytest.fixture
def light(monkeypatch):
    """Stand-ins for the layers that take long to build."""

    def base(wanted, platform, store, registry, report):
        return Base((make_layer("base", [Entry("etc/base", data=platform.encode())], store),))

    def runtime(runtime, profile, store, report):
        return make_layer("runtime", [Entry("opt/wherry/runtime/x", data=profile.platform.encode())], store)

    monkeypatch.setattr("wherry_cli.packaging.command.base_for", base)
    monkeypatch.setattr("wherry_cli.packaging.command.runtime_layer", runtime)


@pytest.mark.registry
def test_package_pushes_one_image_per_profile_and_describes_them(light, registry, make_model, tmp_path):
    told: list[Progress] = []
    order = PackageOrder(
        "whole",
        "1",
        ("generic-amd64", "raspberry-pi-5"),
        model=make_model(),
        registry=registry,
        output=tmp_path / "out",
        release=ReleaseOptions(stage="qa"),
        cache=tmp_path / "cache",
    )
    made = package(order, told.append)
    assert read_package_file(tmp_path / "out") == made
    assert read_package_file(tmp_path / "out" / "package.json") == made
    assert [image.profile for image in made.images] == ["generic-amd64", "raspberry-pi-5"]
    assert {image.stage for image in made.images} == {"qa"}
    assert [gate.kind for gate in made.images[0].gates] == ["ready", "signature", "golden", "memory", "soak"]
    assert golden_gate(made.images[0]).digest == sha256_digest((tmp_path / "out" / "golden.json").read_bytes())
    with RegistryClient(registry) as client:
        for image in made.images:
            found = client.manifest("wherry/whole", image.digest)
            assert found is not None
            assert len(found.data) == image.manifest_bytes
            assert client.manifest("wherry/whole", f"1-{image.profile}-qa") == found
    assert any(step.note for step in told)

    reference = f"{registry}/wherry/whole@{made.images[0].digest}"
    golden = tmp_path / "out" / "golden.json"
    ready = PackageOrder(
        "whole", "1", ("generic-amd64",), from_image=reference, golden=golden, registry=registry, cache=tmp_path / "c2"
    )
    again = package(replace(ready, release=ReleaseOptions(stage="qa")))
    assert again.images[0] == made.images[0], "nothing was new"
    (promoted,) = package(ready).images
    assert promoted.layers == made.images[0].layers
    with RegistryClient(registry) as client:
        found = json.loads(client.read_blob("wherry/whole", promoted.config_digest))["config"]
    assert "WHERRY_STAGE=prod" in found["Env"]
    with pytest.raises(RegistryError, match="is for linux/amd64"):
        package(PackageOrder("whole", "1", ("raspberry-pi-5",), from_image=reference, registry=registry))
    with pytest.raises(RegistryError, match="is not in the registry"):
        package(PackageOrder("whole", "1", ("generic-amd64",), from_image=f"{registry}/a:b", registry=registry))


@pytest.mark.registry
def test_a_gpu_base_of_the_registry_brings_runtime_and_needs(
    registry, make_model, model_files, store, profiles, tmp_path
):
    reference = profiles["jetson-orin"].base.reference
    order = PackageOrder(
        "eyes", "1", ("jetson-orin",), model=make_model(), registry=registry, cache=tmp_path / "cache",
        provider="TensorrtExecutionProvider",
    )  # fmt: skip
    with RegistryClient(registry) as client:
        if client.manifest("wherry/base", reference.partition(":")[2]) is None:
            with pytest.raises(RegistryError, match=r"Dockerfile\.jetson"):
                package(order)
        layer = make_layer("other", [Entry("usr/lib/libcuda", data=b"gpu")], store)
        config = L4T | {"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": [layer.diff_id]}}
        base = assemble(profiles["jetson-orin"], config, [layer], {}, None)
        push_image(base, client, "wherry/base", reference.partition(":")[2])
        image = package(order).images[0]
        assert [item.kind for item in image.layers] == ["other", "serving", "model"]
        assert (image.needs.l4t, image.needs.sm) == (["36"], ["87"])
        built = json.loads(client.read_blob("wherry/eyes", image.config_digest))
        assert built["architecture"] == "arm64"
    with pytest.raises(InputError, match="holds the runtime onnx, the model needs litert"):
        package(replace(order, model=model_files["pymicro-wakeword-2.5.0"]))


def test_package_without_registry_saves_to_the_folder(light, make_model, tmp_path):
    order = PackageOrder(
        "saved", "1", ("generic-amd64",), model=make_model(), output=tmp_path / "out", cache=tmp_path / "cache"
    )
    made = package(order)
    assert made.images[0].repository == ""
    digest = made.images[0].digest.removeprefix("sha256:")
    assert (tmp_path / "out" / "generic-amd64" / "blobs" / "sha256" / digest).is_file()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "needs a model file"),
        ({"from_image": "a/b"}, "and not both"),
        ({"output": None}, "has nowhere to go"),
        ({"profiles": ()}, "--profile"),
        ({"profiles": ("generic-amd64", "generic-amd64")}, "twice"),
        ({"profiles": ("commodore-64",)}, "commodore-64"),
        ({"golden": Path("x"), "no_golden": True}, "contradict"),
        ({"registry": "http://x"}, "HOST:PORT"),
        ({"runtime": "custom"}, "from-image"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(tmp_path, changes, words):
    fields = {"name": "m", "version": "1", "profiles": ("generic-amd64",), "model": Path("m.onnx")}
    with pytest.raises(InputError, match=words):
        package(PackageOrder(**(fields | {"output": tmp_path, "cache": tmp_path} | changes)))


def test_shapes_are_read_and_names_may_hold_an_equals_sign():
    assert parse_shapes(["x=1,3,224", "a=b:0=2"]) == {"x": (1, 3, 224), "a=b:0": (2,)}
    for text in ("x", "=1", "x=", "x=0", "x=-1", "x=a"):
        with pytest.raises(InputError, match="--shape"):
            parse_shapes([text])


def test_package_files_are_read_back_or_refused(build, store, tmp_path):
    built = build(store)
    image = packaged_image(built, served(built), "r:1/wherry/vision", ReleaseOptions())
    text = PackageFile(model="vision", version="1", images=[image]).to_json()
    (tmp_path / "package.json").write_text(text)
    assert read_package_file(tmp_path).images == [image]
    for wrong in (text.replace('"schema": 1', '"schema": 2'), "{", text.replace('"vision"', '"sound"', 1)):
        (tmp_path / "package.json").write_text(wrong)
        with pytest.raises(InputError, match="package file"):
            read_package_file(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_package_file(tmp_path / "absent")


def test_fp16_weights_get_the_fp16_tolerance(make_model):
    source = read_model(make_model("half.onnx", kind=np.float16), "m", "1", ModelWishes())
    assert source.precision == "fp16"


def test_only_who_says_so_signs_that_an_image_drains(build, store):
    built = build(store)
    plain = Served("whole", "1", "custom", "CPUExecutionProvider", "fp32", None)
    assert run_spec(built, plain, ReleaseOptions()).drains is None
    assert run_spec(built, plain, ReleaseOptions(drains=True)).drains is True
