"""Classification: the loss of relative location and rotation, whose labels are made."""

import torch
from torch.nn import functional


def classification(logit_RC: torch.Tensor, label_R: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return `loss`, the mean cross entropy, and `accuracy`, the share of rows that are right.

    `logit_RC`: R rows, C classes. `label_R`: int64 in 0..C - 1. Computed in float32 (float64 for
    float64 logits), under autocast too.
    """
    with torch.autocast(logit_RC.device.type, enabled=False):
        logit_RC = logit_RC.to(torch.promote_types(logit_RC.dtype, torch.float32))
        accuracy = (logit_RC.detach().argmax(1) == label_R).to(logit_RC.dtype).mean()
        return {"loss": functional.cross_entropy(logit_RC, label_R), "accuracy": accuracy}
