"""Instance contrast: the losses of MoCo v2, SimCLR and NPID, which compare whole images.

Every loss returns (mean loss, accuracy): two scalars, the accuracy being the share of images whose
positive is more similar than every negative. All are computed in float32 (float64 for float64
features), under autocast too: at temperature 0.07 a bfloat16 logit is off by up to 6 %.

Shapes: N images, D features, K queue entries, M noise samples.
"""

import math

import torch
from torch.nn import functional


def queue_info_nce(
    query_ND: torch.Tensor, key_ND: torch.Tensor, queue_KD: torch.Tensor, *, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """MoCo's loss (He et al. 2020, eq. 1): each image's own key against the K keys of the queue.

    Queries and keys are normalised here; the queue's entries must have norm 1.
    """
    with torch.autocast(query_ND.device.type, enabled=False):
        query_ND = unit(query_ND)
        key_ND = unit(key_ND)
        positive_N1 = (query_ND * key_ND).sum(1, keepdim=True)
        return _softmax_loss(positive_N1, query_ND @ queue_KD.to(query_ND.dtype).T, temperature)


def nt_xent(
    views: tuple[torch.Tensor, torch.Tensor],
    all_views: tuple[torch.Tensor, torch.Tensor],
    *,
    first: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """SimCLR's NT-Xent loss (Chen et al. 2020, eq. 1 and Alg. 1) over this process's 2N views.

    The positive of each view (N, D) is the other view of its image; its negatives are all views of
    the global batch's other images. `all_views`: two tensors (size·N, D), in which this process's
    rows begin at `first`.
    """
    with torch.autocast(views[0].device.type, enabled=False):
        anchors = [unit(view) for view in views]
        candidates = [unit(view) for view in all_views]
        own_N1 = torch.arange(first, first + len(anchors[0]), device=anchors[0].device).unsqueeze(1)
        results = []
        for anchor, same, other in ((anchors[0], *candidates), (anchors[1], *reversed(candidates))):
            positive_N1 = (anchor @ other.T).gather(1, own_N1)
            # Neither the view itself nor its positive is a negative.
            negatives = [(anchor @ view.T).scatter(1, own_N1, -torch.inf) for view in (same, other)]
            results.append(_softmax_loss(positive_N1, torch.cat(negatives, 1), temperature))
        (loss_1, accuracy_1), (loss_2, accuracy_2) = results
        return (loss_1 + loss_2) / 2, (accuracy_1 + accuracy_2) / 2


def noise_softmax(
    feature_ND: torch.Tensor, own_ND: torch.Tensor, noise_NMD: torch.Tensor, *, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """NPID's loss in OpenSelfSup: softmax over the image's own bank entry and M noise entries.

    Features are normalised here; the bank's entries must have norm 1.
    """
    with torch.autocast(feature_ND.device.type, enabled=False):
        return _softmax_loss(*_bank_cosines(feature_ND, own_ND, noise_NMD), temperature)


def noise_contrastive(
    feature_ND: torch.Tensor,
    own_ND: torch.Tensor,
    noise_NMD: torch.Tensor,
    *,
    samples: int,
    temperature: float,
    partition: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """NPID's noise-contrastive estimation (Wu et al. 2018, eq. 4-7): own bank entry or noise.

    P(i|v) = exp(v·f_i / T) / Z, and h(i, v) = P / (P + M/n) is the probability that an entry is the
    image's and not one of M noise samples, uniform over the n = `samples` images. The loss is
    -ln h(own) - Σ ln(1 - h(noise)). `partition` is Z. Features are normalised here; the bank's
    entries must have norm 1.
    """
    with torch.autocast(feature_ND.device.type, enabled=False):
        positive_N1, negative_NM = _bank_cosines(feature_ND, own_ND, noise_NMD)
        # ln h and ln(1 - h) are the log-sigmoids of ±(ln P - ln(M/n)), which cannot overflow.
        shift = math.log(samples / (partition * noise_NMD.shape[1]))
        own_N = functional.logsigmoid(positive_N1 / temperature + shift).sum(1)
        noise_N = functional.logsigmoid(-(negative_NM / temperature + shift)).sum(1)
        accuracy = (positive_N1 > negative_NM).all(1).to(positive_N1.dtype).mean()
        return -(own_N + noise_N).mean(), accuracy.detach()


def unit(features: torch.Tensor) -> torch.Tensor:
    """Divide the features by their L2 norm, in at least float32."""
    return functional.normalize(
        features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1
    )


def _bank_cosines(
    feature_ND: torch.Tensor, own_ND: torch.Tensor, noise_NMD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines with the image's own entry (N, 1) and with the noise entries (N, M)."""
    feature_ND = unit(feature_ND)
    positive_N1 = (feature_ND * own_ND).sum(1, keepdim=True)
    return positive_N1, torch.bmm(noise_NMD, feature_ND.unsqueeze(2)).squeeze(2)


def _softmax_loss(
    positive_N1: torch.Tensor, negative_NM: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (mean cross entropy of the positive among all candidates, accuracy)."""
    logits = torch.cat((positive_N1, negative_NM), 1) / temperature
    target = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)  # the positive
    loss = functional.cross_entropy(logits, target)
    accuracy = (positive_N1 > negative_NM).all(1).to(logits.dtype).mean()
    return loss, accuracy.detach()
