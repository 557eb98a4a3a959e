"""Collectives for a method's forward pass: gather the rows of all processes.

Every process must hold the same number of rows. Gathered rows are in the order of ranks, which is
the order of the global batch. With one process all functions are no-ops.
"""

import torch
import torch.distributed
import torch.distributed.nn
from torch import nn


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes that gradients are averaged over."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@torch.no_grad()
def gather(rows: torch.Tensor) -> torch.Tensor:
    """Gather the (n, …) rows of every process as (size·n, …), without gradients.

    The memory format is kept.
    """
    _, size = rank_and_size()
    if size == 1:
        return rows
    channels_last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
    sent = rows.permute(0, 2, 3, 1) if channels_last else rows.contiguous()
    parts = [torch.empty_like(sent) for _ in range(size)]
    torch.distributed.all_gather(parts, sent)
    gathered = torch.cat(parts)
    return gathered.permute(0, 3, 1, 2) if channels_last else gathered


def gather_with_gradient(rows: torch.Tensor) -> torch.Tensor:
    """`gather` with gradients: a row's is the sum of its gradients in all processes' losses.

    With losses that are means over each process's rows, DistributedDataParallel's average of the
    gradients is then the gradient of the mean over all rows. (Implementations that keep only the
    own process's part train on 1 / size of it.)
    """
    rank, size = rank_and_size()
    if size == 1:
        return rows
    before = rank * len(rows)
    after = (size - 1 - rank) * len(rows)
    padded = nn.functional.pad(rows, (0, 0) * (rows.dim() - 1) + (before, after))
    # A sum of zero-padded rows: gloo has no reduce-scatter for all_gather's backward pass.
    return torch.distributed.nn.functional.all_reduce(padded)
