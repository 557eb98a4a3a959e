"""Responses to masked images: region, maps, the comparison inside it, the picture and command."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.ops import roi_align

from maskco_fast.commands.mph import MphConfig, mph
from maskco_fast.evaluation.mask_prediction import centre_region, mask_centre, mask_responses
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.pictures.mph import mph_picture
from tests.support.checkpoints import write_run


@pytest.mark.parametrize(
    ("size", "region"), [(224, (80, 80, 144, 144)), (64, (23, 23, 41, 41)), (96, (34, 34, 61, 61))]
)
def test_the_region_is_the_centre_scaled(size, region):
    assert centre_region(size) == region
    images = torch.ones(1, 3, size, size)
    masked = mask_centre(images)
    assert images.sum() == 3 * size**2
    x1, y1, x2, y2 = region
    assert masked[:, :, y1:y2, x1:x2].abs().sum() == 0
    assert masked.sum() == 3 * (size**2 - (y2 - y1) * (x2 - x1))


def test_responses_against_torchvision_s_roi_align():
    torch.manual_seed(0)
    trunk = torch.nn.Conv2d(3, 6, 32, stride=32)
    head = torch.nn.Conv2d(6, 6, 1)
    images = torch.randn(2, 3, 224, 224)
    layers = mask_responses(trunk, head, images)
    assert list(layers) == ["conv5", "mph"]
    assert list(mask_responses(trunk, None, images)) == ["conv5"]
    box = [torch.tensor([[80.0, 80, 144, 144]])] * 2
    with torch.no_grad():
        for layer, network in (("conv5", trunk), ("mph", lambda x: head(trunk(x)))):
            maps = layers[layer]
            pair = [network(images), network(mask_centre(images))]
            clean, masked = (roi_align(one, box, 1, 1 / 32, -1, True)[:, :, 0, 0] for one in pair)
            for n in range(2):
                ratio = masked[n].norm() / clean[n].norm()
                cosine = masked[n] @ clean[n] / (masked[n].norm() * clean[n].norm())
                assert float(maps.norm_ratio[n]) == pytest.approx(float(ratio), rel=1e-4)
                assert float(maps.cosine[n]) == pytest.approx(float(cosine), rel=1e-4)
            torch.testing.assert_close(maps.clean, pair[0].abs().mean(1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(maps.masked, pair[1].abs().mean(1), rtol=1e-4, atol=1e-5)


def test_the_command_draws_both_layers_and_names_a_missing_head(tmp_path, make_shards, capsys):
    shards = tuple(make_shards(shards=1, samples=3, side=90))
    write_run(tmp_path / "run")
    widths = []
    plain = tmp_path / "plain.pth"
    torch.save(torchvision.models.resnet18().state_dict(), plain)
    for weights in (tmp_path / "run", plain):
        config = MphConfig(
            weights=str(weights),
            shards=shards,
            out=tmp_path / "mph.png",
            count=2,
            size=64 if weights == plain else None,
            json=str(tmp_path / "mph.json"),
        )
        assert mph(config) == 0
        told = capsys.readouterr()
        result = json.loads((tmp_path / "mph.json").read_text())
        assert (result["images"], result["size"]) == (2, 64)
        assert str(tmp_path) not in (tmp_path / "mph.json").read_text()
        layers = ["conv5", "mph"] if weights != plain else ["conv5"]
        for layer in layers:
            values = [entry[f"{layer}_cosine"] for entry in result["per_image"]]
            assert result[f"{layer}_cosine"] == pytest.approx(np.mean(values), rel=1e-5)
            assert f"{result[f'{layer}_norm_ratio']:.3f}" in told.out
        assert ("mph_cosine" in result) == ("mph" in layers)
        assert ("no mask prediction head" in told.err) == ("mph" not in layers)
        widths.append(Image.open(tmp_path / "mph.png").width)
    assert widths == [6 * 230, 4 * 230]


def test_a_pair_shares_its_colours(tmp_path):
    """Where the masked map is half the clean one, its colour is that of half the scale."""
    clean = torch.full((1, 2, 2), 4.0)
    layers = {"conv5": _maps(clean, clean / 2)}
    gray = np.full((1, 64, 64, 3), 128, np.uint8)
    mph_picture(["a"], gray, gray, layers, tmp_path / "mph.png")
    picture = np.asarray(Image.open(tmp_path / "mph.png").convert("RGB")).astype(int)
    for colour in ((253, 231, 37), (33, 145, 140)):  # viridis at 1 and at .5
        assert (np.abs(picture - colour).max(axis=2) <= 3).sum() > 10_000
    with pytest.raises(InvalidInput, match="got no images"):
        mph_picture([], gray, gray, layers, tmp_path / "mph.png")


def _maps(clean, masked):
    from maskco_fast.evaluation.mask_prediction import LayerMaps

    one = torch.ones(len(clean))
    return LayerMaps(clean=clean, masked=masked, norm_ratio=one, cosine=one)
