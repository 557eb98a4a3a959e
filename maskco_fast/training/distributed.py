"""The processes of a run: joining, exchanging values, agreeing to stop.

torchrun starts the processes. torch.distributed averages the gradients (NCCL on CUDA, gloo on the
CPU). Values on the hosts go through a separate gloo group, so that no message waits for a device.
"""

import contextlib
import datetime
import os
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import nn

from maskco_fast.kernels.errors import InvalidInput, MaskCoError
from maskco_fast.training.signals import stop_with_launcher

GRADIENT_TIMEOUT = datetime.timedelta(minutes=10)
"""Longest wait for a rank that neither answers nor closes its connection, as after a power cut."""
CONTROL_TIMEOUT = datetime.timedelta(days=1)
"""Longest wait in the control group, where ranks wait while one of each host indexes the shards."""
PEER_GRACE = 2.0
"""Seconds that a rank waits after it lost a peer, before it ends. torchrun polls ten times a second
and so sees the peer end first and names it as the cause."""
STORE_POLL = 0.02
"""Seconds between two checks whether all ranks have started."""

T = TypeVar("T")


class PeerLost(MaskCoError, RuntimeError):
    """Another rank of the run has ended; that rank's own error gives the reason."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The rank of this process and its exchanges with the others.

    The default is a run of one process, in which every exchange returns its argument at once.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of this process on its host, below `local_size`."""
    local_size: int = 1
    control: Any = None
    """The gloo process group for values on the hosts; None in a run of one process."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, the only one that writes files."""
        return self.rank == 0

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """All ranks' tensors, (size, *shape). Waits for all ranks.

        `tensor`: on the CPU, of the same shape and dtype on every rank.
        """
        if self.control is None:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor.contiguous(), group=self.control)
        return torch.stack(parts)

    def gather_objects(self, value: T) -> list[T]:
        """All ranks' values, in the order of the ranks. Waits for all ranks."""
        if self.control is None:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank. Waits for rank 0."""
        if self.control is None:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def agree_to_stop(self, name: str | None) -> str | None:
        """The name of the signal that stops the run, the same on every rank; None to go on.

        `name`: the signal that this rank received, if any. Waits for all ranks. Called before every
        step, it adds little: the step's first exchange would wait for the same ranks.
        """
        number = int(self.gather(torch.tensor(signal.Signals[name] if name else 0)).max())
        return signal.Signals(number).name if number else None

    @contextlib.contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """Run the block on each host's local rank 0, then on its other ranks.

        For work that fills a cache on the host, such as indexing.
        """
        if self.control is not None and self.local_rank != 0:
            torch.distributed.barrier(group=self.control)
        yield
        if self.control is not None and self.local_rank == 0:
            torch.distributed.barrier(group=self.control)


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Join the run that torchrun's environment variables describe; leave it at the end.

    `device`: where this rank computes. A run of one process has no process group, with or without
    torchrun. An error inside the block ends this rank at once. Its connections break, and the other
    ranks raise PeerLost.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if "TORCHELASTIC_RUN_ID" in os.environ:
        stop_with_launcher()
    if size == 1:
        yield World()
        return
    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=GRADIENT_TIMEOUT))
    group = {
        "store": _fresh_store(store, rank, size),
        "rank": rank,
        "world_size": size,
        "timeout": GRADIENT_TIMEOUT,
    }
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", device_id=device, **group)
    else:
        torch.distributed.init_process_group("gloo", **group)
    world = World(
        rank=rank,
        size=size,
        local_rank=local_rank(),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        control=torch.distributed.new_group(backend="gloo", timeout=CONTROL_TIMEOUT),
    )
    try:
        yield world
        torch.distributed.barrier(group=world.control)  # rank 0 may still be writing
    except RuntimeError as error:
        if _is_lost_peer(error):
            time.sleep(PEER_GRACE)
            raise PeerLost(
                f"rank {world.rank} lost its connection to another rank; "
                f"see that rank's error. ({error})"
            ) from error
        raise
    torch.distributed.destroy_process_group()


def _fresh_store(store: Any, rank: int, size: int) -> Any:
    """A part of torchrun's store that no earlier start of these ranks has used.

    torchrun keeps one store through its restarts, with the addresses of processes that it killed.
    It counts the restarts on each node separately, so the ranks cannot use that number. Instead,
    rank 0 picks the name of the part and hands it to the others:

    - Every rank publishes a token, random at each start.
    - Rank 0 answers under the other's token with its own token, the name of the part.
    - The other rank confirms in that part.

    Answers and confirmations carry tokens of this start, so those of a killed process are ignored.
    Waits for all ranks; raises PeerLost after GRADIENT_TIMEOUT.
    """
    token = uuid.uuid4().hex
    if rank != 0:
        store.set(f"token of {rank}", token)
        try:
            store.wait([f"answer to {token}"], GRADIENT_TIMEOUT)
        except torch.distributed.DistStoreError as error:
            raise PeerLost("rank 0 has not started; see torchrun's output on its node") from error
        part = store.get(f"answer to {token}").decode()
        store.set(f"{part} confirmed by {rank}", "")
        return torch.distributed.PrefixStore(part, store)
    missing = set(range(1, size))
    deadline = time.monotonic() + GRADIENT_TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise PeerLost(
                f"ranks {sorted(missing)} of {size} have not started; "
                "see torchrun's output on their nodes"
            )
        for other in missing:
            # A token may be stale, of a killed process, until the new one replaces it: hence the
            # answer is repeated until the rank confirms.
            if store.check([f"token of {other}"]):
                store.set(f"answer to {store.get(f'token of {other}').decode()}", token)
        missing = {other for other in missing if not store.check([f"{token} confirmed by {other}"])}
        time.sleep(STORE_POLL)
    return torch.distributed.PrefixStore(token, store)


def share_of_batch(batch_size: int, processes: int) -> int:
    """The images of a batch for each of `processes`; InvalidInput where they do not divide."""
    if batch_size % processes:
        raise InvalidInput(
            f"`batch_size` must be a multiple of the {processes} processes, got {batch_size}."
        )
    return batch_size // processes


def local_rank() -> int:
    """The number of this process on its host: torchrun's LOCAL_RANK, or 0 without torchrun."""
    return int(os.environ.get("LOCAL_RANK", 0))


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether the error is a broken connection to another rank.

    NCCL and the store raise torch's DistError; gloo has no exception class, only its message.
    """
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Set BatchNorm's running statistics to their mean over the ranks.

    A step moves them linearly towards the statistics of the rank's own groups. The mean is thus
    what one process would hold that had seen all groups. Normalisation in training does not read
    them, so averaging once a checkpoint suffices.
    """
    layers = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    statistics = [
        s for layer in layers for s in (layer.running_mean, layer.running_var) if s is not None
    ]
    if not statistics:
        return
    # One exchange for all layers.
    mean = torch.cat([statistic.flatten() for statistic in statistics])
    torch.distributed.all_reduce(mean)
    mean /= torch.distributed.get_world_size()
    parts = mean.split([statistic.numel() for statistic in statistics])
    for statistic, part in zip(statistics, parts):
        statistic.copy_(part.view_as(statistic))
