"""What a method's forward pass needs of the other processes' images; of one process, all of it is a
no-op.

Every process holds equally many rows, and the rows of all stand in the order of ranks, which is the
global batch's.
"""

import torch
import torch.distributed
import torch.distributed.nn
from torch import nn


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes that gradients are averaged over."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@torch.no_grad()
def gather(rows: torch.Tensor) -> torch.Tensor:
    """(n, …) of every process as (size·n, …), without gradients; the memory format is kept."""
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
    """As `gather`; a row's gradient is the sum of what every process's loss asks of it.

    With losses that are means over each process's rows, the average of gradients that follows is
    the gradient of the mean over all rows. (Implementations that keep the own process's part alone
    train on 1 / size of it.)
    """
    rank, size = rank_and_size()
    if size == 1:
        return rows
    before, after = rank * len(rows), (size - 1 - rank) * len(rows)
    padded = nn.functional.pad(rows, (0, 0) * (rows.dim() - 1) + (before, after))
    return torch.distributed.nn.functional.all_reduce(
        padded
    )  # small, and gloo has no reduce-scatter for the way back
