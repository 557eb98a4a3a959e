"""The processes of one run: who they are, what they tell each other, how they agree to stop.

torchrun starts them and torch.distributed carries the gradients (NCCL on CUDA, gloo on the CPU).
What the hosts have to tell each other goes through a gloo group of its own, so that no message
waits for a device.
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

from maskco_fast.kernels.errors import MaskCoError

GRADIENT_TIMEOUT = datetime.timedelta(minutes=10)
"""How long a step waits for a rank that neither answers nor closes its connection, as after a power
cut."""
CONTROL_TIMEOUT = datetime.timedelta(days=1)
"""Of messages between hosts: ranks wait here while one of each host indexes the shards."""
PEER_GRACE = 2.0
"""Seconds that a rank which lost a peer stays, so that torchrun, which looks ten times a second,
sees the peer end first and names it as the cause."""
STORE_POLL = 0.02
"""Seconds between two looks whether all ranks have started."""

T = TypeVar("T")


class PeerLost(MaskCoError, RuntimeError):
    """Another rank of the run is gone; why, that rank has told."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run. The default is a run of one process, for which every
    exchange is a no-op."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among the processes of this host, as `local_size` counts them."""
    local_size: int = 1
    control: Any = None
    """The gloo process group of the messages between hosts; None in a run of one process."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return self.rank == 0

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """(size, *shape): every rank's CPU tensor, of one shape on all of them. Waits for all
        ranks."""
        if self.control is None:
            return tensor.unsqueeze(0)
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        torch.distributed.all_gather(parts, tensor.contiguous(), group=self.control)
        return torch.stack(parts)

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, by rank. Waits for all ranks."""
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
        """The signal that the run stops for, the same on every rank: `name` where this rank got
        one. Waits for all.

        Before a step it waits for those that the step's first exchange would wait for, and takes
        half a millisecond itself between two processes of a host (`benchmarks/processes.py`).
        """
        number = int(self.gather(torch.tensor(signal.Signals[name] if name else 0)).max())
        return signal.Signals(number).name if number else None

    @contextlib.contextmanager
    def one_of_each_host_first(self) -> Iterator[None]:
        """Let local rank 0 do what fills a cache before the host's other ranks find it filled."""
        if self.control is not None and self.local_rank != 0:
            torch.distributed.barrier(group=self.control)
        yield
        if self.control is not None and self.local_rank == 0:
            torch.distributed.barrier(group=self.control)


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[World]:
    """Join the run that torchrun's environment describes, for computing on `device`; leave it in
    the end.

    One process, with or without torchrun, needs no process group. An error inside leaves at once:
    the other ranks' connections break, which is how they learn of it, as PeerLost.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World()
        return
    store, rank, size = next(torch.distributed.rendezvous("env://", timeout=GRADIENT_TIMEOUT))
    place = {
        "store": _unused(store, rank, size),
        "rank": rank,
        "world_size": size,
        "timeout": GRADIENT_TIMEOUT,
    }
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl", device_id=device, **place)
    else:
        torch.distributed.init_process_group("gloo", **place)
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
        if _tells_of_a_lost_peer(error):
            time.sleep(PEER_GRACE)
            raise PeerLost(
                f"rank {world.rank} lost its connection to another rank, which tells why: {error}"
            ) from error
        raise
    torch.distributed.destroy_process_group()


def _unused(store: Any, rank: int, size: int) -> Any:
    """A part of torchrun's store that no earlier start of these ranks has written to. Waits for all
    ranks.

    torchrun keeps one store through its restarts, with the addresses of processes that it has
    killed. It numbers the restarts on each node for itself, so that the ranks cannot take that
    number; rank 0 names the part instead. A rank shows a word of its own, new at each start, and is
    answered under that word, so that neither takes the other for one that is gone.
    """
    word = uuid.uuid4().hex
    if rank != 0:
        store.set(f"shown by {rank}", word)
        try:
            store.wait([f"answer to {word}"], GRADIENT_TIMEOUT)
        except torch.distributed.DistStoreError as error:
            raise PeerLost("rank 0 has not started; see what torchrun says on its node") from error
        part = store.get(f"answer to {word}").decode()
        store.set(f"{part} is known to {rank}", "")
        return torch.distributed.PrefixStore(part, store)
    missing, until = set(range(1, size)), time.monotonic() + GRADIENT_TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > until:
            raise PeerLost(
                f"ranks {sorted(missing)} of {size} have not started; see what torchrun says on their nodes"
            )
        for other in missing:
            if store.check([f"shown by {other}"]):
                store.set(f"answer to {store.get(f'shown by {other}').decode()}", word)
        missing = {other for other in missing if not store.check([f"{word} is known to {other}"])}
        time.sleep(STORE_POLL)
    return torch.distributed.PrefixStore(word, store)


def local_rank() -> int:
    """This process's number on its host: torchrun's LOCAL_RANK, else 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def _tells_of_a_lost_peer(error: RuntimeError) -> bool:
    """gloo has no exception class of its own; torch's DistError is NCCL's and the store's."""
    return isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Set BatchNorm's running statistics to their mean over the ranks.

    A step moves them linearly towards the statistics of the rank's own groups, so the mean taken
    now is what one process would hold that had seen all groups in every step: once a checkpoint is
    enough. Normalisation in training does not read them.
    """
    layers = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    statistics = [
        s for layer in layers for s in (layer.running_mean, layer.running_var) if s is not None
    ]
    if not statistics:
        return
    mean = torch.cat([statistic.flatten() for statistic in statistics])
    torch.distributed.all_reduce(mean)
    mean /= torch.distributed.get_world_size()
    for statistic, part in zip(
        statistics, mean.split([statistic.numel() for statistic in statistics])
    ):
        statistic.copy_(part.view_as(statistic))
