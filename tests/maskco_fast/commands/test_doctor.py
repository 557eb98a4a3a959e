"""The doctor: outcomes of probes, usable loaders and devices, no side effects on the caller."""

import importlib.metadata
import itertools
import json
import pickle
import subprocess
import sys

import pytest

from maskco_fast.commands import doctor
from maskco_fast.commands.doctor import PROBES, Check, DoctorConfig, Report, probe
from maskco_fast.loaders import LOADERS

ASK = """
import os, pickle, sys
before = dict(os.environ)
from maskco_fast.commands import doctor
report = doctor.report()
loaded = {"torch", "numpy", "numba", "nvidia.dali", "ffcv"} & set(sys.modules)
assert not loaded, loaded
assert dict(os.environ) == before
sys.stdout.buffer.write(pickle.dumps(report))
"""
"""Asking loads nothing into the caller and leaves its environment alone."""


@pytest.fixture(scope="module")
def report():
    """The report of this environment, which each test of it takes from one process."""
    asked = subprocess.run([sys.executable, "-c", ASK], check=True, stdout=subprocess.PIPE)
    return pickle.loads(asked.stdout)


def check(name, state="ok", **facts):
    return Check(
        name=name,
        state=state,
        detail="d",
        fix="" if state == "ok" else f"install {name}",
        facts=facts,
    )


def torch_check(cuda, devices=()):
    return check("torch", cuda=cuda, devices=list(devices), threads=2, vectors="AVX2")


def test_this_environment_can_train(report):
    states = {one.name: one.state for one in report.packages}
    for name in (
        "torch",
        "torchvision",
        "numpy",
        "numba",
        "kernel cache",
        "pillow",
        "simplejpeg",
        "webdataset",
    ):
        assert states[name] == "ok"
    assert {one.name: one.state for one in report.loaders}.items() >= {
        ("reference", "ok"),
        ("native", "ok"),
    }
    assert report.usable
    assert set(states) == set(PROBES)


def test_every_loader_is_reported():
    assert set(doctor.LOADER_NEEDS) == set(LOADERS)
    needs = set(itertools.chain.from_iterable(doctor.LOADER_NEEDS.values()))
    assert needs <= set(PROBES)


def test_text_and_json_say_the_same(report):
    text, data = report.as_text(), json.loads(report.as_json())
    assert data["usable"] is True
    for group in ("packages", "loaders", "devices"):
        for one in data[group]:
            assert f"{one['state']:<8}{one['name']:<14}{one['detail']}" in text
            assert one["fix"] in text


def test_versions_are_those_installed(report):
    import numpy

    found = {one.name: one for one in report.packages}
    assert found["numpy"].facts["version"] == numpy.__version__
    assert found["numba"].facts["layers"]
    for name, distribution in (("numba", "numba"), ("pillow", "pillow"), ("ffcv", "ffcv")):
        if found[name].state == "ok":
            assert found[name].facts["version"] == importlib.metadata.version(distribution)


def test_probe_ok():
    result = probe(
        "numpy", "\n    noise = 1\n    print('noise')\n    answer(None, a=noise, b=[], c='x')\n"
    )
    assert (result.state, result.detail, result.fix) == ("ok", "a 1, c x", "")


def test_probe_missing_names_the_remedy():
    result = probe("simplejpeg", "import no_such_package_at_all")
    assert result.state == "missing"
    assert "no_such_package_at_all" in result.detail
    assert result.fix == f"{sys.executable} -m pip install 'simplejpeg'"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libx.so: wrong symbol')", "wrong symbol"),
        ("import os; os._exit(3)", "code 3"),
    ],
)
def test_probe_broken(code, reason):
    result = probe("numba", code)
    assert result.state == "broken"
    assert reason in result.detail


def test_probe_that_hangs():
    result = probe("dali", "import time; time.sleep(60)", seconds=0.5)
    assert (result.state, result.detail) == ("broken", "no answer within 0.5 s")
    assert "maskco-fast[dali]" in result.fix


def test_ffcv_remedy_names_only_the_debian_packages_that_lack(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)
    remedy = doctor._remedy("ffcv")
    assert (
        "apt-get install g++ pkg-config python3-dev libopencv-dev libturbojpeg0-dev && " in remedy
    )
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(doctor.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(doctor, "_pkg_config_knows", lambda library: library == "opencv4")
    assert "apt-get install libturbojpeg0-dev && " in doctor._remedy("ffcv")
    monkeypatch.setattr(doctor, "_pkg_config_knows", lambda library: True)
    assert "apt-get" not in doctor._remedy("ffcv")
    assert "maskco-fast[ffcv]" in doctor._remedy("ffcv")


def test_loader_lacks_what_its_packages_lack():
    found = {name: check(name) for name in PROBES}
    assert doctor._loader("native", found).state == "ok"
    found["simplejpeg"] = check("simplejpeg", "broken")
    assert doctor._loader("reference", found).state == "ok"
    native = doctor._loader("native", found)
    assert (native.state, native.fix) == ("missing", "install simplejpeg")
    assert "simplejpeg is broken (d)" in native.detail


@pytest.mark.parametrize(
    ("torch", "cpu", "cuda", "says"),
    [
        (check("torch", "missing"), "missing", "missing", "needs torch"),
        (torch_check(None), "ok", "missing", "build without CUDA"),
        (torch_check("13.0"), "ok", "missing", "built for CUDA 13.0"),
        (
            torch_check("13.0", [{"name": "H100", "capability": "9.0", "gib": 80}]),
            "ok",
            "ok",
            "H100 (sm 9.0, 80 GiB)",
        ),
    ],
)
def test_devices(torch, cpu, cuda, says):
    found = doctor._devices({"torch": torch})
    assert [(one.name, one.state) for one in found] == [("cpu", cpu), ("cuda", cuda)]
    assert says in found[1].detail


@pytest.mark.parametrize(("states", "code"), [(("ok", "missing"), 0), (("missing", "broken"), 1)])
def test_exit_code(monkeypatch, capsys, states, code):
    loaders = [check(f"loader{i}", state) for i, state in enumerate(states)]
    fake = Report(machine={"python": "3"}, packages=[], loaders=loaders, devices=[check("cpu")])
    monkeypatch.setattr(doctor, "report", lambda: fake)
    assert doctor.doctor(DoctorConfig()) == code
    assert "Training can" in capsys.readouterr().out
    assert doctor.doctor(DoctorConfig(json=True)) == code
    assert json.loads(capsys.readouterr().out)["usable"] is (code == 0)
