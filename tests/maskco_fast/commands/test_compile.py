"""The `compile` command: its choice of jobs, its processes, its report."""

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from maskco_fast.commands import compile as command
from maskco_fast.commands.compile import CompileConfig
from maskco_fast.kernels import ahead, headers, tar
from maskco_fast.kernels.coefficients.decode import decode_record, decode_record_avx512
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.kernels.jpeg.checkpoints import find_checkpoints
from maskco_fast.kernels.jpeg.checksum import file_checksum
from maskco_fast.kernels.jpeg.chunks import decode_region_by_lanes, decode_region_by_streams
from maskco_fast.kernels.jpeg.decode import decode_region, make_jpeg_scratch
from maskco_fast.kernels.plan import plan_rows
from maskco_fast.kernels.render.files import render_files
from maskco_fast.kernels.render.image import make_scratch, render_views
from maskco_fast.kernels.render.records import RecordRenderer
from maskco_fast.loaders import LoaderConfig, ViewConfig, make_loader
from maskco_fast.loaders.backends import compilation
from tests.support.images import encode, picture, write_shards


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
    headers.find_ordinary_scan,
    plan_rows,
    make_scratch,
    make_jpeg_scratch,
    decode_region,
    decode_region_by_lanes,
    decode_region_by_streams,
    decode_record,
    decode_record_avx512,
    file_checksum,
    render_views,
    render_files,
)


def test_a_loader_compiles_nothing_after_its_jobs(tmp_path):
    """The jobs compile for the very types of arguments that the calls of the loader, of a scan of
    its dataset and of a loader of records have."""
    shards = write_shards(tmp_path, shards=1, samples=2, side=160)
    for job in compilation.loader_jobs(LoaderConfig(batch_size=2, views=ViewConfig.maskco())):
        ahead.JOBS[job]()
    ahead.JOBS["records"]()
    before = [set(kernel.overloads) for kernel in KERNELS]
    with make_loader(shards, 2, index_folder=tmp_path / "index") as loader:
        for _ in range(2):  # the second epoch reads from checkpoints
            list(loader)
    data = encode(picture(8, 8, 0))
    assert find_checkpoints(data) is not None
    renderer = RecordRenderer(ViewConfig.maskco())
    rows = np.zeros((1, renderer._columns), np.float32)
    out = np.zeros(renderer.config.layout.elements, np.float32)
    number = np.zeros(1, np.int64)
    assert not renderer.render_records([data], np.full((1, 2), 8), rows, number, out).any()
    assert renderer.decode_region(data, 8, 8, (0, 0, 8, 8)) is None
    assert [set(kernel.overloads) for kernel in KERNELS] == before
