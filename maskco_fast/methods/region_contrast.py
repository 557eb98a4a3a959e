"""InfoNCE between one query region and many key regions an image, contrasted in groups of images.

Shapes: N images, G groups of n = N / G images, K key boxes (0 the positive), D features.
"""

from typing import Literal

import torch
from torch.nn import functional

from maskco_fast.kernels.errors import InvalidInput


def region_info_nce(
    query_ND: torch.Tensor,
    keys_NKD: torch.Tensor,
    *,
    group_size: int,
    temperature: float,
    negatives: Literal["inter", "intra", "both"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean loss over all images and the share of them whose positive beats every negative, both
    scalars.

    Paper, eq. 1 and Algorithm 1. The features are L2-normalised here. An image's candidates are its
    own positive box (place 0) and the negative boxes of the other images of its group ("inter",
    16·(n - 1) of them), its own negative boxes ("intra", 16) or both; other images' positives never
    take part (paper, A.2). Groups are runs of `group_size` images; a batch of fewer images is one
    group. ValueError where N is more than a group but not a multiple of it.

    Computed in float32 (float64 for float64 features) whatever autocast says: at temperature .2 a
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
                negative_NM = negative_NM.masked_fill(
                    _own(group, boxes - 1, count, query_ND.device), -torch.inf
                )
        logits = torch.cat((positive_N1, negative_NM), 1) / temperature
        loss = functional.cross_entropy(
            logits, torch.zeros(count, dtype=torch.int64, device=logits.device)
        )
        accuracy = (positive_N1 > negative_NM).all(1).to(dtype).mean()
    return loss, accuracy.detach()


def group_length(count: int, group_size: int) -> int:
    """How many images share a group in a batch of `count`: `group_size`, or all where they are
    fewer."""
    if count <= group_size:
        return count
    if count % group_size:
        raise InvalidInput(f"a batch of {count} images does not divide into groups of {group_size}")
    return group_size


def _own(group: int, per_image: int, count: int, device: torch.device) -> torch.Tensor:
    """(N, n·per_image) bool: the columns that belong to the row's own image."""
    own = torch.eye(group, dtype=torch.bool, device=device).repeat_interleave(per_image, dim=1)
    return own.repeat(count // group, 1)
