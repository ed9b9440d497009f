"""Compose file, systemd units, Kubernetes manifests and image files: each read by the tool it is for."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
MANIFESTS = ("server", "postgres", "registry")
ASKED = {"POSTGRES_PASSWORD": "for-tests", "GRAFANA_PASSWORD": "for-tests", "WHERRY_HOST": "wherry.example.org"}


def run(*argv, env=None, **options):
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, env=os.environ | (env or {}), timeout=120, **options
    )


@pytest.fixture(scope="module")
def stack():
    """The compose file as docker-compose understands it."""
    done = run("docker-compose", "-f", str(ROOT / "deploy/compose.yaml"), "config", env=ASKED)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_compose_accepts_the_stack(stack):
    assert set(stack["services"]) == {
        "broker", "grafana", "postgres", "prometheus", "registry", "server", "setup",
    }  # fmt: skip


@pytest.mark.parametrize("missing", ASKED)
def test_compose_refuses_to_start_on_a_guess(missing):
    done = run("docker-compose", "-f", str(ROOT / "deploy/compose.yaml"), "config", env=ASKED | {missing: ""})
    assert done.returncode != 0
    assert missing in done.stderr


def test_only_what_devices_reach_listens_to_others(stack):
    shown = {
        name: port for name, service in stack["services"].items() for port in map(str, service.get("ports", []))
        if "127.0.0.1" not in port
    }  # fmt: skip
    assert set(shown) == {"broker", "server"}


def test_files_that_the_stack_mounts_exist(stack):
    for service in stack["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
            assert not source.startswith(("/", ".")) or Path(source).exists(), source


@pytest.fixture(params=UNITS, ids=lambda path: path.stem)
def unit(request, tmp_path):
    """A unit whose program exists, as it does where Wherry is installed."""
    text = re.sub(r"^(ExecStart=)\S+", r"\1/bin/true", request.param.read_text(), flags=re.MULTILINE)
    path = tmp_path / request.param.name
    path.write_text(text)
    return path


def test_systemd_accepts_the_units(unit):
    done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_the_units_well_confined(unit):
    """systemd's own measure: 0 is confined, 10 is exposed; an unhardened service has 9.6."""
    limit = {"wherry-agent": 45, "wherry-haproxy": 35}.get(unit.stem, 25)  # roots, with few powers
    done = run("systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={limit}", str(unit))
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_accepts_the_manifests(name):
    documents = list(yaml.safe_load_all((ROOT / f"deploy/kubernetes/{name}.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    assert {document["kind"] for document in documents} >= {"Service", "StatefulSet"}


def test_a_wrong_manifest_is_refused():
    document = next(yaml.safe_load_all((ROOT / "deploy/kubernetes/server.yaml").read_text()))
    document["spec"]["port"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_pods_get_no_more_than_they_need():
    folder = ROOT / "deploy/kubernetes"
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(f"{name}.yaml" for name in MANIFESTS)
    for path in map(folder.joinpath, listed):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] != "StatefulSet":
                continue
            pod = document["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert pod["automountServiceAccountToken"] is False
            for container in pod["containers"]:
                assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
                assert container["resources"]["limits"]["memory"]


@pytest.fixture(scope="module")
def stand_in():
    """scripts/stand_in_ort.py, which writes libraries as CUDA's compiler does."""
    spec = importlib.util.spec_from_file_location("stand_in_ort", ROOT / "scripts/stand_in_ort.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_gpu_code(library, *arguments):
    return run(sys.executable, str(ROOT / "deploy/bin/check-gpu-code"), str(library), *arguments)


@pytest.mark.parametrize(
    ("machine_code", "ptx", "status", "words"),
    [
        ([72, 87], [], 0, "has code for sm_72, sm_87"),
        ([89, 90, 120, 121], [], 1, "no code for sm_87, it has code for sm_89, sm_90, sm_120, sm_121"),
        ([], [87], 1, "no code for sm_87, it has code for no GPU"),
        ([], [], 1, "no code for sm_87"),
    ],
)
def test_gpu_code_is_found_where_cuda_keeps_it(stand_in, tmp_path, machine_code, ptx, status, words):
    library = tmp_path / "libonnxruntime_providers_cuda.so"
    library.write_bytes(stand_in.library(machine_code, ptx))
    done = check_gpu_code(library, "87")
    assert done.returncode == status
    assert words in done.stdout + done.stderr


def test_a_library_that_is_cut_off_or_missing_holds_no_code(stand_in, tmp_path):
    whole = stand_in.library([87, 87])
    for length in (0, 3, whole.find(b"\x50\xed\x55\xba") + 8, whole.find(b"\x50\xed\x55\xba") + 30):
        (tmp_path / "cut.so").write_bytes(whole[:length])
        assert check_gpu_code(tmp_path / "cut.so", "87").returncode == 1
    assert check_gpu_code(tmp_path / "none.so", "87").returncode == 1


@pytest.mark.parametrize("name", ["Dockerfile.arm64", "Dockerfile.jetson", "Dockerfile.server"])
def test_images_install_nothing_without_a_hash(name):
    text = (ROOT / name).read_text()
    # The one exception is the board's own ONNX Runtime, whose hash is checked in the line before.
    for line in re.findall(r"pip install(?:[^\n]*\\\n)*[^\n]*", text):
        assert "--require-hashes" in line or '"/ort/${ORT_WHEEL}"' in line
    assert "sha256sum --check" in text or "ORT_WHEEL" not in text
    assert re.search(r"^USER 65532:65532$", text, re.MULTILINE)


@pytest.mark.parametrize("extra", ["agent", "server"])
def test_the_lock_of_an_image_holds_what_its_program_declares(extra):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / f"requirements/{extra}.txt").read_text(), re.MULTILINE))
    assert {re.split(r"[\[<>=]", name)[0] for name in declared} <= locked, "run `make lock`"
