"""The `compile` command: its choice of jobs, its processes, its report."""

import json
import subprocess
import sys

import pytest

from maskco_fast.commands import compile as command
from maskco_fast.commands.compile import CompileConfig
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import LoaderConfig, ViewConfig
from maskco_fast.loaders.backends import compilation


@pytest.fixture
def compiled(monkeypatch):
    """The jobs that have run, with processes that do nothing; a job named in `broken` fails."""
    done, broken = {"plan"}, set[str]()

    def start(jobs):
        done.update(set(jobs) - broken)
        code = "raise SystemExit(1)" if broken & set(jobs) else ""
        return subprocess.Popen([sys.executable, "-S", "-c", code])

    monkeypatch.setattr(command, "start_jobs", start)
    monkeypatch.setattr(command, "is_compiled", done.__contains__)
    return done, broken


def test_missing_jobs_are_compiled_and_reported(compiled, capsys):
    assert command.compile(CompileConfig(device="cpu", json=True)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["compiled"] == ["decode", "render-float32", "index"]
    assert facts["ready"] == ["plan"]
    assert facts["failed"] == []
    assert command.compile(CompileConfig(device="cpu")) == 0
    assert "compiled nothing" in capsys.readouterr().out


def test_a_failed_process_fails_the_command(compiled, capsys):
    compiled[1].add("index")
    assert command.compile(CompileConfig(device="cpu", processes=1)) == 1
    assert "the kernels of index were not compiled" in capsys.readouterr().err


def test_every_job_has_a_choice(compiled, capsys):
    assert command.compile(CompileConfig(dtype="all", json=True)) == 0
    assert set(json.loads(capsys.readouterr().out)["compiled"]) == set(compilation.JOBS) - {"plan"}
    with pytest.raises(InvalidInput, match="`--processes` must be at least 1, got 0"):
        command.compile(CompileConfig(processes=0))


def test_a_loader_needs_the_jobs_of_its_dtype_and_device():
    views = ViewConfig.maskco()
    on_cpu = compilation.loader_jobs(LoaderConfig(batch_size=2, views=views))
    assert on_cpu == ("index", "plan", "decode", "render-float32")
    device = compilation.loader_jobs(LoaderConfig(batch_size=2, views=views, device="meta"))
    assert device == ("index", "plan", "decode", "resize")
