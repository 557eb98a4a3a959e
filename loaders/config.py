"""Settings of a loader, validated."""

from dataclasses import dataclass

import torch

from ..kernels.errors import InvalidInput
from ..kernels.formats import FORMAT_NAMES, FORMATS
from ..kernels.views import ViewConfig
from .order import SHARDS_PER_BLOCK
from .system.cpus import usable_cpus

DECODING = ("exact", "fast")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """What a loader yields and how; `make_loader` documents the fields for users."""

    batch_size: int
    """Samples a batch on this rank."""
    views: ViewConfig
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    seed: int = 0
    rank: int | None = None
    world_size: int | None = None
    shuffle: bool = True
    block: int = SHARDS_PER_BLOCK
    """Shards that are shuffled together."""
    threads: int | None = None
    """Decoding threads; None for the CPUs that this process may use."""
    prefetch: int = 3
    """Batches in the making at a time."""
    decode: str = "exact"
    """One of `DECODING`."""

    def __post_init__(self) -> None:
        if (
            self.batch_size < 1
            or self.prefetch < 1
            or (self.threads is not None and self.threads < 1)
        ):
            raise InvalidInput(
                f"batch_size {self.batch_size}, prefetch {self.prefetch} and threads {self.threads} want at least 1"
            )
        if self.dtype not in FORMATS:
            raise InvalidInput(f"dtype is {self.dtype}; views come as {', '.join(FORMAT_NAMES)}")
        if self.decode not in DECODING:
            raise InvalidInput(f"decode is {self.decode!r}; it wants to be {' or '.join(DECODING)}")
        if (self.rank is None) != (self.world_size is None):
            raise InvalidInput(
                f"rank is {self.rank} and world_size {self.world_size}; give both or neither"
            )
        if (
            self.rank is not None
            and self.world_size is not None
            and not 0 <= self.rank < self.world_size
        ):
            raise InvalidInput(
                f"rank is {self.rank}; with world_size {self.world_size} it wants 0..{self.world_size - 1}"
            )

    @property
    def seam(self) -> bool:
        """Whether the host stops at the seam, two uint8 views, since the rest happens on the
        device."""
        return torch.device(self.device).type != "cpu"

    @property
    def pixel_dtype(self) -> torch.dtype:
        """What `Rendered.pixels` holds."""
        return torch.uint8 if self.seam else self.dtype

    @property
    def thread_count(self) -> int:
        """`threads`, or the CPUs that this process may use."""
        return self.threads or usable_cpus()
