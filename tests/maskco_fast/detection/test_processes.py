"""Two processes: BatchNorm over unequal shares, and a run from training to AP."""

import dataclasses
import json
import os
import pathlib

import pytest
import torch
import torch.distributed

from maskco_fast.commands.detect import detect
from maskco_fast.detection.config import DetectConfig
from maskco_fast.errors import SUCCESS
from maskco_fast.networks.batch_norm import SynchronizedBatchNorm
from tests.support.processes import free_port, run_ranks

SHARES = (3, 8)
"""Rows of each process: regions differ in number, and maps in size."""


def normalised(rows: torch.Tensor, norm: SynchronizedBatchNorm) -> dict[str, torch.Tensor]:
    """The output for (N, 5), the gradients of its sum of cubes, and the running statistics."""
    rows = rows.clone().requires_grad_()
    output = norm(rows)
    output.pow(3).sum().backward()
    assert rows.grad is not None
    assert norm.weight.grad is not None
    return {
        "output": output.detach(),
        "gradient": rows.grad,
        "weight": norm.weight.grad,
        "mean": norm.running_mean.clone(),  # type: ignore[union-attr]
        "variance": norm.running_var.clone(),  # type: ignore[union-attr]
    }


def all_rows() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(SHARES), 5, generator=generator, dtype=torch.float64)


def process(rank: int, folder: str, config: DetectConfig, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    share = all_rows().split(SHARES)[rank]
    torch.save(normalised(share, SynchronizedBatchNorm(5).double()), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    assert detect(config) == SUCCESS


@pytest.fixture
def results(tiny: DetectConfig, tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder in which both processes have written; `run` is the detector's."""
    pytest.importorskip("pycocotools")
    config = dataclasses.replace(tiny, eval_every=1, pictures=0)
    run_ranks(process, (str(tmp_path), config, free_port()))
    return tmp_path


def test_two_processes_normalise_and_detect_as_one(results: pathlib.Path) -> None:
    """Statistics and gradients are those of all rows; every test image is counted once."""
    first, second = (torch.load(results / f"{rank}.pt") for rank in range(2))
    whole = normalised(all_rows(), SynchronizedBatchNorm(5).double())
    for name in ("output", "gradient"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), whole[name])
    torch.testing.assert_close(first["weight"] + second["weight"], whole["weight"])
    for name in ("mean", "variance"):
        for share in (first, second):
            torch.testing.assert_close(share[name], whole[name])

    result = json.loads((results / "run" / "detect.json").read_text())
    assert result["images"] == 3
    assert [test["step"] for test in result["tests"]] == [1, 2]
    lines = (results / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
