"""InfoNCE between each image's query region and key regions of its group of images.

Shapes: N images, G groups of n = N / G images, K key boxes (0 is the positive), D features, M
negatives per image.
"""

from typing import Literal

import torch
from torch.nn import functional

from maskco_fast.networks.config import group_length


def region_info_nce(
    query_ND: torch.Tensor,
    keys_NKD: torch.Tensor,
    *,
    group_size: int,
    temperature: float,
    negatives: Literal["inter", "intra", "both"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean loss, accuracy), two scalars (paper, eq. 1 and Algorithm 1).

    The accuracy is the share of images whose positive is more similar than every negative. The
    features are L2-normalised here. An image is contrasted with its own positive box (box 0) and
    with the negative boxes of the other images of its group ("inter", 16·(n - 1) of them), its own
    negative boxes ("intra", 16), or both. Other images' positives never take part (paper, A.2).
    Groups are runs of `group_size` images; a smaller batch is one group. InvalidInput where N
    exceeds a group and is not a multiple of it.

    Computed in float32 (float64 for float64 features), under autocast too: at temperature 0.2 a
    bfloat16 logit is off by up to 2 %.
    """
    count, boxes, _ = keys_NKD.shape
    group = group_length(count, group_size)
    with torch.autocast(query_ND.device.type, enabled=False):
        dtype = torch.promote_types(query_ND.dtype, torch.float32)
        query_ND = functional.normalize(query_ND.to(dtype), dim=-1)
        keys_NKD = functional.normalize(keys_NKD.to(dtype), dim=-1)
        positive_N1 = (query_ND * keys_NKD[:, 0]).sum(-1, keepdim=True)
        if negatives == "intra":
            negative_NM = torch.einsum("nd,nkd->nk", query_ND, keys_NKD[:, 1:])
        else:
            query_GnD = query_ND.unflatten(0, (-1, group))
            keys_GmD = keys_NKD[:, 1:].reshape(count // group, group * (boxes - 1), -1)
            negative_NM = torch.bmm(query_GnD, keys_GmD.mT).flatten(0, 1)
            if negatives == "inter":
                own_NM = _own_boxes(group, boxes - 1, count, query_ND.device)
                negative_NM = negative_NM.masked_fill(own_NM, -torch.inf)
        logits = torch.cat((positive_N1, negative_NM), 1) / temperature
        target = torch.zeros(count, dtype=torch.int64, device=logits.device)  # the positive
        loss = functional.cross_entropy(logits, target)
        accuracy = (positive_N1 > negative_NM).all(1).to(dtype).mean()
    return loss, accuracy.detach()


def _own_boxes(group: int, per_image: int, count: int, device: torch.device) -> torch.Tensor:
    """Return (N, n·per_image) bool: the group's boxes that belong to the row's own image."""
    own = torch.eye(group, dtype=torch.bool, device=device).repeat_interleave(per_image, dim=1)
    return own.repeat(count // group, 1)
