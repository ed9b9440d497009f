"""Stages share all layers but the page; pictures and labels are declared in a file; sizes are said."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from wherry.elements import tensor_from_golden
from wherry.errors import InputError
from wherry.release import GoldenFile, ModelFile, Signature, TensorSpec
from wherry_cli.main import app
from wherry_cli.packaging.app_layer import page_layer, serving_layer
from wherry_cli.packaging.build import check_size, size_warning
from wherry_cli.packaging.command import PackageOrder, package
from wherry_cli.packaging.package_file import PackagedImage
from wherry_cli.packaging.picture import declare, read_declaration
from wherry_cli.packaging.push import image_tag
from wherry_cli.packaging.quantize import Quantize
from wherry_cli.packaging.release import ReleaseOptions
from wherry_cli.packaging.store import Layer

PICTURE = """
[picture]
scale = "1/255"
fit = "cover"

[labels]
names = ["cat", "dog", "cow", "hen"]
top = 2
"""


def declared(tmp_path, text=PICTURE) -> Path:
    path = tmp_path / "picture.toml"
    path.write_text(text)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(2)
    for number in range(3):
        pixels = random.integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"photo-{number}.png")
    return folder


@pytest.fixture
def order(conv_model, tmp_path, quick_layers) -> PackageOrder:
    return PackageOrder(
        "m", "1", ("generic-amd64",), model=conv_model, output=tmp_path / "out", cache=quick_layers
    )  # fmt: skip


def members(cache: Path, image: PackagedImage, kind: str) -> dict[str, bytes]:
    (layer,) = (layer for layer in image.layers if layer.kind == kind)
    data = (cache / "blobs" / layer.digest.removeprefix("sha256:")).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = [(item.name, archive.extractfile(item)) for item in archive if item.isreg()]
        return {name: file.read() for name, file in files if file is not None}


def configuration(order: PackageOrder, image: PackagedImage) -> dict:
    assert order.output is not None
    name = image.config_digest.removeprefix("sha256:")
    return json.loads((order.output / "generic-amd64" / "blobs" / "sha256" / name).read_bytes())["config"]


# -- stages


def test_promoting_from_dev_to_prod_keeps_every_layer_but_drops_the_page(order):
    made = {}
    for stage in ("dev", "qa", "uat", "prod"):
        staged = replace(order, release=ReleaseOptions(stage=stage))
        (image,) = package(staged).images
        made[stage] = {layer.kind: layer.digest for layer in image.layers}
        run = configuration(staged, image)
        assert run["Labels"]["io.wherry.stage"] == stage
        assert f"WHERRY_STAGE={stage}" in run["Env"]
        assert image.stage == stage
    page = made["dev"].pop("page")
    assert page not in made["prod"].values()
    assert made["dev"] == made["qa"] == made["uat"] == made["prod"]
    assert list(made["prod"]) == ["base", "runtime", "serving", "model"]


def test_the_page_is_in_its_own_layer_alone(store):
    page = page_layer(store)
    assert page is not None
    with tarfile.open(page.path) as archive:
        assert "opt/wherry/app/wherry_serving/page/try.html" in archive.getnames()
    with tarfile.open(serving_layer(store).path) as archive:
        assert not [name for name in archive.getnames() if "/page/" in name]


def test_the_tag_tells_stages_apart():
    assert image_tag("1", "raspberry-pi-4") == "1-raspberry-pi-4"
    assert image_tag("1", "raspberry-pi-4", "dev") == "1-raspberry-pi-4-dev"
    assert image_tag("9" * 200, "p", "qa").endswith("-qa")
    assert len(image_tag("9" * 200, "p", "qa")) == 128


# -- pictures


def test_a_declared_picture_goes_into_model_json_and_photos_into_golden_cases(order, photos, tmp_path, quick_layers):
    order = replace(order, picture=declared(tmp_path), golden=photos)
    (image,) = package(order).images
    assert [layer.kind for layer in image.layers] == ["base", "runtime", "picture", "serving", "model"]
    files = members(quick_layers, image, "model")
    described = ModelFile.model_validate_json(files["opt/wherry/models/m/model.json"])
    assert described.picture is not None
    assert described.labelled is not None
    assert (described.picture.input, described.picture.layout, described.picture.width) == ("x", "NCHW", 16)
    assert described.picture.scale == 1 / 255
    assert (described.labelled.output, described.labelled.labels[1]) == ("y", "dog")
    cases = GoldenFile.model_validate_json(files["opt/wherry/models/m/golden.json"]).cases
    assert [case.name for case in cases] == ["photo-0", "photo-1", "photo-2"]
    values = tensor_from_golden(cases[0].inputs[0]).values()
    assert 0 <= min(values) < max(values) <= 1, "prepared as the server prepares them"
    assert "/opt/wherry/picture" in next(item for item in configuration(order, image)["Env"] if "PYTHONPATH" in item)
    assert image.run.memory_mb > 256, "a decoded picture needs memory too"
    assert package(replace(order, output=tmp_path / "again")).images[0].digest == image.digest


def test_a_model_without_pictures_carries_no_pillow(order):
    (image,) = package(order).images
    assert "picture" not in [layer.kind for layer in image.layers]


def test_pictures_calibrate_where_they_are_declared(order, photos, tmp_path):
    wanted = Quantize("int8", photos, 50)
    made = package(replace(order, picture=declared(tmp_path), quantize=wanted))
    assert made.quantization is not None
    assert (made.quantization.samples, made.quantization.made_up) == (3, False)
    with pytest.raises(InputError, match="declares no picture input"):
        package(replace(order, quantize=wanted))
    with pytest.raises(InputError, match=r"declares no picture input.*--picture"):
        package(replace(order, golden=photos))


FILE = ModelFile(
    name="m", version="1", file="m.onnx", runtime="onnx", provider="CPUExecutionProvider", precision="fp32",
    signature=Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 16, 20, 1])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 4])],
    ),
)  # fmt: skip


def test_what_the_signature_says_need_not_be_declared(tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\n\nc\nd\n")
    text = '[picture]\nmean = ["1/2"]\n[labels]\nfile = "labels.txt"\n'
    found = declare(read_declaration(declared(tmp_path, text)), FILE)
    assert found.picture is not None
    assert found.labelled is not None
    size = (found.picture.width, found.picture.height)
    assert (found.picture.layout, found.picture.colour, size) == ("NHWC", "gray", (20, 16))
    assert found.picture.mean == [0.5]
    assert found.labelled.labels == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "declares nothing"),
        ("[picture", "is not TOML"),
        ("[picture]\nfitt = 1", r"field picture\.fitt: is not known here"),
        ('[picture]\nscale = "1/0"', r"field picture\.scale: .*divides by zero"),
        ('[picture]\nscale = "one"', r"field picture\.scale"),
        ("[picture]\nwidth = 10", r"picture in .* gives \[1, 16, 10, 1\] \(NHWC\), input 'x' is \[-1, 16, 20, 1\]"),
        ('[picture]\ninput = "z"', "fills input 'z', the model has x"),
        ('[picture]\nfit = "bend"', "field fit"),
        ("[picture]\nmean = [0.1, 0.2]", "has 2 numbers in mean, expected 1"),
        ('[labels]\nnames = ["a", "b"]', r"labels in .* are 2, output 'y' has 4 classes"),
        ('[labels]\noutput = "z"\nnames = []', "are for output 'z', the model has y"),
        ('[labels]\nfile = "absent.txt"', r"cannot be read \(.*absent\.txt"),
        ('[picture]\nscale = "1e400"', r"field picture\.scale: .*expected a number below 1e308"),
        ("[picture]\nscale = inf", r"field picture\.scale: .*expected a number below 1e308"),
        ('[picture]\nscale = "1e99999999"', r"field picture\.scale"),
        ('[picture]\nmean = ["1/1e-400"]', "divides by zero"),
        (f"[picture]\nscale = {'9' * 400}", r"field picture\.scale"),
        (f"[picture]\nscale = {'9' * 5000}", "is not TOML"),
        ('[labels]\nfile = "/etc/passwd"', r"names '/etc/passwd' .* outside its folder"),
        ('[labels]\nfile = "../other.txt"', "outside its folder"),
        ('[labels]\nfile = "link.txt"', "outside its folder"),
        ('[labels]\nfile = "large.txt"', "is larger than 4 MiB"),
        ('[labels]\nfile = "."', "is not an ordinary file"),
        (f'[labels]\nnames = ["a", "{"b" * 300}"]', "as label 2, expected at most 256"),
        ('[labels]\nnames = ["\\u001b[2J"]', "as label 1, expected .* printable"),
    ],
)
def test_declarations_that_do_not_fit_are_refused_in_words(tmp_path, text, words):
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    (tmp_path / "large.txt").write_bytes(b"x" * (5 << 20))
    with pytest.raises(InputError, match=words):
        declare(read_declaration(declared(tmp_path, text)), FILE)


# -- sizes


def test_sizes_by_layer_go_into_the_release(order):
    (image,) = package(order).images
    sizes = image.model_copy(update={"repository": "r:1/m"}).to_release_image(1).layers
    assert list(sizes) == ["base", "runtime", "serving", "model"]
    assert sum(sizes.values()) == image.download_bytes


@pytest.mark.parametrize(
    ("kind", "advice"), [("model", "--quantize fp16"), ("runtime", "smaller runtime"), ("base", "--base debian")]
)
def test_a_large_image_is_warned_of_with_a_way_out(profiles, kind, advice):
    class Built:
        layers = (Layer(kind, "", "", "", 1, 1900 << 20), Layer("serving", "", "", "", 1, 1 << 20))
        unpacked_bytes = 1901 << 20

    profile = profiles["generic-amd64"]
    warning = size_warning(Built, profile)
    assert "1901 MB unpacked, of 2048 MB that generic-amd64 allows" in warning
    assert f"Its {kind} layer alone has 1900 MB" in warning
    assert advice in warning
    Built.unpacked_bytes = 1000 << 20
    assert size_warning(Built, profile) == ""
    Built.unpacked_bytes = 3000 << 20
    with pytest.raises(InputError, match=advice):
        check_size(Built, profile)


# -- the command


def test_the_command_saves_without_pushing_and_shows_the_comparison(conv_model, tmp_path, monkeypatch, quick_layers):
    monkeypatch.setenv("WHERRY_CACHE", str(quick_layers))
    monkeypatch.setenv("WHERRY_REGISTRY", "127.0.0.1:9")  # as a login would have left it
    out = tmp_path / "saved"
    options = ["--name", "m", "--version", "1", "--profile", "generic-amd64", "--output", str(out)]
    done = CliRunner().invoke(
        app, ["package", str(conv_model), *options, "--no-push", "--quantize", "fp16", "--reset", "never"]
    )
    assert done.exit_code == 0, done.output
    assert (out / "generic-amd64" / "index.json").is_file()
    for word in ("AGREEMENT", "COSINE", "fp16", "100.0%", "made-up inputs"):
        assert word in done.output
    both = CliRunner().invoke(app, ["package", str(conv_model), *options, "--no-push", "--registry", "x:1"])
    assert both.exit_code == 1
    alone = CliRunner().invoke(app, ["package", str(conv_model), *options, "--no-push", "--calibration", str(out)])
    assert "without --quantize" in alone.output
