"""The ResNet distance: its four variants against loops, and the command."""

import json
import math

import pytest
import torch
import torchvision

from maskco_fast.commands.distance import DistanceConfig, distance
from maskco_fast.evaluation.distance import (
    VARIANTS,
    distance_views,
    map_distances,
    resnet_distance,
)
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import make_loader
from tests.support.checkpoints import write_run


def distances_by_loop(first, second):
    """The variants of one pair of maps (C, H, W), cell by cell."""
    _, height, width = first.shape
    cells = []
    for y in range(height):
        for x in range(width):
            a, b = first[:, y, x].tolist(), second[:, y, x].tolist()
            norm_a, norm_b = math.hypot(*a), math.hypot(*b)
            cells.append(math.dist([v / norm_a for v in a], [v / norm_b for v in b]))
    pooled = []
    for one in (first, second):
        means = [float(channel.mean()) for channel in one]
        pooled.append([mean / math.hypot(*means) for mean in means])
    pooled_l2 = math.dist(*pooled)
    return {
        "map_l2_mean": sum(cells) / len(cells),
        "map_frobenius": math.sqrt(sum(cell**2 for cell in cells)) / (height * width),
        "pooled_l2": pooled_l2,
        "pooled_l2_squared": 2 - 2 * sum(a * b for a, b in zip(*pooled)),
    }


@pytest.mark.parametrize("cells", [(7, 7), (2, 3)])
def test_variants_against_a_loop(cells):
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3, 16, *cells, generator=generator) for _ in range(2))
    found = map_distances(first, second)
    assert found.keys() == VARIANTS.keys()
    for n in range(3):
        for name, expected in distances_by_loop(first[n], second[n]).items():
            assert float(found[name][n]) == pytest.approx(expected, rel=1e-4)


def test_equal_maps_have_no_distance():
    maps = torch.rand(2, 8, 3, 3)
    for values in map_distances(maps, 3 * maps).values():
        torch.testing.assert_close(values, torch.zeros(2), atol=2e-6, rtol=0)


def test_images_are_counted_and_views_are_plain(make_shards):
    shards = make_shards(shards=1, samples=6, side=80)
    views = distance_views(32)
    assert views.size == 32
    with make_loader(shards, 4, views=views, backend="reference", shuffle=False) as loader:
        batch = next(iter(loader))
        values = resnet_distance(torch.nn.AvgPool2d(16), [batch, batch], images=6)
        expected = map_distances(*(torch.nn.functional.avg_pool2d(v, 16) for v in batch.views))
        with pytest.raises(InvalidInput, match="at least one usable image"):
            resnet_distance(torch.nn.AvgPool2d(16), [], images=6)
    for name in VARIANTS:
        together = torch.cat([expected[name], expected[name][:2]])
        torch.testing.assert_close(values[name], together)
    for view in views.views:
        assert (view.area, view.jitter_probability, view.flip_probability) == ((0.2, 1.0), 0.0, 0.0)
        assert (view.gray_probability, view.blur_probability) == (0.0, 0.0)


def test_the_command_measures_ours_and_torchvision_s_weights(tmp_path, make_shards, capsys):
    shards = tuple(make_shards(shards=1, samples=6, side=80))
    write_run(tmp_path / "run")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "supervised.pth")
    for weights in (tmp_path / "run", tmp_path / "supervised.pth"):
        out = tmp_path / "distance.json"
        config = DistanceConfig(
            weights=str(weights), shards=shards, images=5, batch_size=3, size=64, json=str(out)
        )
        assert distance(config) == 0
        told = capsys.readouterr().out
        result = json.loads(out.read_text())
        assert result["images"] == 5
        assert str(tmp_path) not in out.read_text()
        for name in VARIANTS:
            assert 0 < result[name] < 2
            assert f"{result[name]:.4f}" in told
        assert "unnamed formula" in told
    with pytest.raises(InvalidInput, match="`size` must be a positive multiple of 32, got 100"):
        DistanceConfig(weights="random", shards=shards, size=100)
