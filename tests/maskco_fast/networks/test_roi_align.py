"""RoIAlign against torchvision's and against the separable form worked out by hand."""

import pytest
import torch
import torchvision

from maskco_fast.networks.roi_align import region_features
from maskco_fast.training.devices import configure_cuda
from tests.support.boxes import random_boxes
from tests.support.devices import DEVICES


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [-1, 1, 3])
@pytest.mark.parametrize("cells", [1, 3, 7])
@pytest.mark.parametrize("device", DEVICES)
def test_region_features_equal_torchvisions_roi_align(device, cells, sampling_ratio, aligned):
    """torchvision's on the CPU, ours on both devices."""
    configure_cuda(torch.device(device, 0))
    generator = torch.Generator().manual_seed(cells)
    feature_map = torch.randn(3, 6, cells, cells, generator=generator).contiguous(
        memory_format=torch.channels_last
    )
    feature_map.requires_grad_(True)
    boxes_NK4 = random_boxes(3, 17, 32 * cells, seed=cells)
    ours = region_features(
        feature_map.to(device),
        boxes_NK4.to(device),
        stride=32,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    ).cpu()
    theirs = torchvision.ops.roi_align(
        feature_map, list(boxes_NK4), 1, 1 / 32, sampling_ratio, aligned
    )
    theirs = theirs.reshape(ours.shape)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    weights = torch.randn(ours.shape, generator=generator)
    gradients = [
        torch.autograd.grad((result * weights).sum(), feature_map)[0] for result in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=5e-6)


def test_region_features_are_the_separable_form():
    """Wy F Wx^T with the weights of one box worked out by hand: cells of 32 pixels, two samples
    down, one across."""
    feature_map = torch.arange(12.0).reshape(1, 1, 3, 4) ** 2
    # In cells, less the half: x .75..1.75, y 0..1.5.
    box = torch.tensor([[[40.0, 16.0, 72.0, 64.0]]])
    # Down: 1.5 cells give 2 samples, at .375 and 1.125; across: 1 cell gives 1, at 1.25.
    weight_y = torch.tensor([[0.625, 0.375 + 0.875, 0.125]]) / 2
    weight_x = torch.tensor([[0.0, 0.75, 0.25, 0.0]])
    wanted = weight_y @ feature_map[0, 0] @ weight_x.T
    found = region_features(feature_map, box, stride=32, sampling_ratio=-1, aligned=True)
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
