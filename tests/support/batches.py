"""The boxes of a batch, for tests whose views always have some."""

import torch

from maskco_fast.loaders import Batch


def masked_box(batch: Batch) -> torch.Tensor:
    """(N, 4) float32."""
    assert batch.masked_box is not None
    return batch.masked_box


def key_boxes(batch: Batch) -> torch.Tensor:
    """(N, 17, 4) float32."""
    assert batch.key_boxes is not None
    return batch.key_boxes
