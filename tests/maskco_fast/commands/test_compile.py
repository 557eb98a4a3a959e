"""The `compile` command: its choice of jobs, its processes, its report."""

import json
import subprocess
import sys
from typing import Any

import pytest

from maskco_fast.commands import compile as command
from maskco_fast.commands.compile import CompileConfig
from maskco_fast.kernels import ahead, headers, tar
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.jpeg.checksum import file_checksum
from maskco_fast.kernels.plan import plan_rows
from maskco_fast.kernels.render.decode_crops import (
    decode_crops,
    decode_crops_by_lanes,
    decode_crops_by_streams,
)
from maskco_fast.kernels.render.image import make_scratch, render_views
from maskco_fast.kernels.render.jpegs import render_jpegs
from maskco_fast.loaders import LoaderConfig, ViewConfig, make_loader
from maskco_fast.loaders.backends import compilation
from tests.support.images import write_shards


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
    assert facts["compiled"] == ["decode", "render-float32", "checkpoints", "index"]
    assert facts["ready"] == ["plan"]
    assert facts["failed"] == []
    assert command.compile(CompileConfig(device="cpu")) == 0
    assert "compiled nothing" in capsys.readouterr().out


def test_a_failed_process_fails_the_command(compiled, capsys):
    compiled[1].add("index")
    assert command.compile(CompileConfig(device="cpu", processes=1)) == 1
    assert "the kernels of index were not compiled" in capsys.readouterr().err


def test_every_job_has_a_choice(compiled, capsys):
    assert command.compile(CompileConfig(dtype="all", coefficients=True, json=True)) == 0
    assert set(json.loads(capsys.readouterr().out)["compiled"]) == set(ahead.JOBS) - {"plan"}
    with pytest.raises(InvalidInput, match="`--processes` must be at least 1, got 0"):
        command.compile(CompileConfig(processes=0))


def test_a_loader_needs_the_jobs_of_its_dtype_and_device():
    views = ViewConfig.maskco()
    on_cpu = compilation.loader_jobs(LoaderConfig(batch_size=2, views=views))
    assert on_cpu == ("index", "plan", "decode", "render-float32", "checkpoints")
    device = compilation.loader_jobs(LoaderConfig(batch_size=2, views=views, device="meta"))
    assert device == ("index", "plan", "decode", "resize", "checkpoints")


KERNELS: tuple[Any, ...] = (
    tar.walk_tar,
    headers.scan_headers,
    plan_rows,
    make_scratch,
    decode_crops,
    decode_crops_by_lanes,
    decode_crops_by_streams,
    file_checksum,
    render_views,
    render_jpegs,
)


def test_a_loader_compiles_nothing_after_its_jobs(tmp_path):
    """The jobs compile for the very types of arguments that the loader's calls have."""
    shards = write_shards(tmp_path, shards=1, samples=2, side=160)
    for job in compilation.loader_jobs(LoaderConfig(batch_size=2, views=ViewConfig.maskco())):
        ahead.JOBS[job]()
    before = [set(kernel.overloads) for kernel in KERNELS]
    with make_loader(shards, 2, index_folder=tmp_path / "index") as loader:
        for _ in range(2):  # the second epoch reads from checkpoints
            list(loader)
    assert [set(kernel.overloads) for kernel in KERNELS] == before
