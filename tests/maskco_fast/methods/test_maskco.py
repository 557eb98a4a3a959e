"""MaskCo as a method: gradients, the paper's tables as configurations, chance."""

import pytest
import torch

from maskco_fast.loaders import Batch
from maskco_fast.methods.maskco import MaskCoConfig
from maskco_fast.methods.registry import make_method
from maskco_fast.networks.config import ModelConfig
from tests.support.boxes import random_boxes


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave the other cores to tests that run at the same time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def maskco_batch(count: int, size: int, config: MaskCoConfig, seed: int = 0) -> Batch:
    """A batch of noise with the configured number of boxes."""
    generator = torch.Generator().manual_seed(seed)
    per_image = config.views(size).boxes
    views = tuple(torch.randn(count, 3, size, size, generator=generator) for _ in range(2))
    return Batch(
        views=tuple(view.contiguous(memory_format=torch.channels_last) for view in views),
        sample_id=torch.arange(count),
        target=torch.full((count,), -1),
        index=torch.arange(count),
        masked_box=random_boxes(count, 2, size, seed=seed)[:, 0],
        key_boxes=random_boxes(count, per_image, size, seed=seed + 1),
    )


def test_gradient_reaches_the_query_network_alone():
    model = ModelConfig(trunk="resnet18", view_size=32, group_size=4)
    method = make_method("maskco", MaskCoConfig(), model, seed=0)
    scalars = method(maskco_batch(4, 32, MaskCoConfig()))
    scalars["loss"].backward()
    assert not scalars["accuracy"].requires_grad
    for name, parameter in method.named_parameters():
        if name.startswith("query."):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name


def test_every_row_of_tables_5_and_6_is_a_configuration():
    model = ModelConfig(trunk="resnet18", view_size=32, group_size=2)
    configs = {
        (negatives, mask): MaskCoConfig(negatives=negatives, mask=mask, mph_blocks=0)
        for negatives in ("inter", "intra", "both")
        for mask in (True, False)
    }
    found = {}
    for (negatives, mask), config in configs.items():
        assert config.views(32).mask == mask
        method = make_method("maskco", config, model, seed=0)
        found[negatives, mask] = method(maskco_batch(2, 32, config))["loss"].item()
    assert found["inter", True] != found["intra", True]
    assert found["both", True] > max(found["inter", True], found["intra", True])  # more candidates


def test_chance_loss_counts_candidates():
    method = make_method("maskco", MaskCoConfig(), ModelConfig(trunk="resnet18"), seed=0)
    assert method.chance_loss(64) == pytest.approx(6.2086, abs=1e-4)


def test_a_head_may_begin_as_the_identity():
    model = ModelConfig(trunk="resnet10-small", view_size=32, group_size=4)
    features = torch.rand(2, 256, 2, 2)  # as after a ReLU

    def changes_nothing(config: MaskCoConfig) -> bool:
        head = make_method("maskco", config, model, seed=0).query.get_submodule("mph").eval()
        return torch.equal(head(features), features)

    assert changes_nothing(MaskCoConfig(mph_zero_init=True))
    assert not changes_nothing(MaskCoConfig())
