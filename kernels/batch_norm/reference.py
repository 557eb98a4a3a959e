"""The slow reference of BatchNorm of groups: torch's elementary operators, differentiable."""

import torch


def batch_norm(
    input: torch.Tensor,
    weight_C: torch.Tensor,
    bias_C: torch.Tensor,
    *,
    length: int,
    eps: float,
    residual: torch.Tensor | None = None,
    relu: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise groups of `length` images (N, C, H, W), add `residual`, then ReLU if `relu`.

    Returns the output (N, C, H, W) and each group's mean and biased variance (G, C). The dtype is
    the input's throughout: pass float64 for values to compare with.
    """
    outputs, means, variances = [], [], []
    for group in input.split(length):
        variance_C, mean_C = torch.var_mean(group, (0, 2, 3), correction=0)
        centred = group - mean_C[:, None, None]
        scale_C = weight_C / (variance_C + eps).sqrt()
        outputs.append(centred * scale_C[:, None, None] + bias_C[:, None, None])
        means.append(mean_C)
        variances.append(variance_C)
    output = torch.cat(outputs)
    if residual is not None:
        output = output + residual
    if relu:
        output = output.relu()
    return output, torch.stack(means), torch.stack(variances)


def moved_statistics(
    running_mean_C: torch.Tensor,
    running_var_C: torch.Tensor,
    mean_GC: torch.Tensor,
    variance_GC: torch.Tensor,
    *,
    rows: int,
    momentum: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Running statistics after a step: the mean of those of G separate BatchNorms.

    `rows`: images times pixels of a group. As in torch, the running variance is unbiased.
    """
    unbiased_GC = variance_GC * (rows / (rows - 1))
    means_GC = running_mean_C + momentum * (mean_GC - running_mean_C)
    variances_GC = running_var_C + momentum * (unbiased_GC - running_var_C)
    return means_GC.mean(0), variances_GC.mean(0)
