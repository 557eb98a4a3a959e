"""The count of a step's launches and bytes, at a small size on meta tensors."""

import dataclasses

import pytest
import torch

from benchmarks.estimates import count
from maskco_fast.networks.batch_norm import GroupBatchNorm2d

SMALL = count.Options(trunk="resnet18", batch=4, group=2, size=32, nodes=False)


def test_a_step_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """By Triton every BatchNorm layer is one operator of each kind, whatever the groups."""
    assert count.main(SMALL) == 0
    lines = capsys.readouterr().out.splitlines()
    torch_launches, launches, torch_gb, gb = (
        float(cell.replace(",", "")) for cell in lines[-1].split("|")[2:6]
    )
    assert 0 < launches < torch_launches
    assert 0 < gb <= torch_gb
    counts = count.count_step(SMALL, "triton").operators
    layers = [
        layer
        for layer in count.make_method_on_meta(SMALL).modules()
        if isinstance(layer, GroupBatchNorm2d)
    ]
    assert counts["statistics"] == counts["normalise"] == len(layers)
    assert counts["gradients"] == len(layers) / 2  # the key network has none
    assert counts["fork_gradient"] == 3
    assert not counts["native_batch_norm"]


def test_a_step_does_not_grow_with_its_groups() -> None:
    """As many calls of each operator in 4 groups of two images as in 2.

    `python -m benchmarks.estimates.graph` traces the same operators: 1265 nodes with either.
    """
    steps = [
        count.count_step(dataclasses.replace(SMALL, batch=2 * groups), "triton")
        for groups in (2, 4)
    ]
    assert steps[0].operators == steps[1].operators
    assert steps[0].launches == steps[1].launches


def test_weights_are_cast_as_by_autocast() -> None:
    """A trained weight once in a step, however often it is used; a frozen one at each use."""
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    calls = []
    for autocast in (count.Autocast(), torch.autocast("cpu", torch.bfloat16)):
        trained, frozen = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4).requires_grad_(False)
        with count.Record() as record, autocast:
            trained(x), trained(x), frozen(x), frozen(x)
        calls.append(record.counts.operators["_to_copy"])
    assert calls == [6, 6]


def test_operators_count_with_what_they_move() -> None:
    """Known operators: out of place, in place, a copy, a view, BatchNorm's passes."""
    x = torch.empty(2, 16, 4, 4, device="meta")  # 2048 bytes
    with count.Record() as record:
        x + x
        x.add_(x)
        x.copy_(x)
        x.flatten().t()
        torch.nn.functional.batch_norm(x, None, None, training=True)
    part, rest = "BatchNorm, sums, ReLU", "the rest"
    assert record.counts.launches == {part: 1 + 1 + 4, rest: 1}
    assert record.counts.bytes == {part: 2048 * (3 + 3 + 3), rest: 2048 * 2}
