"""Settings of a loader, validated."""

from dataclasses import dataclass

import torch

from ..kernels.errors import InvalidInput
from ..kernels.formats import FORMAT_NAMES
from ..kernels.torch_formats import FORMATS
from ..kernels.views import ViewConfig
from .adapters.forms import Form, find_form
from .order import ShuffleBlock, check_block
from .system.cpus import loader_threads

DECODING = ("exact", "fast")
"""Values of `LoaderConfig.decode`."""
SCAN_INDEX_GB = 16.0
"""Default of `LoaderConfig.scan_index_gb`: about 1.7 kB an image, so 9 million images."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Settings of a loader, as `make_loader` documents them. Raises InvalidInput for a bad one."""

    batch_size: int
    """Samples per batch on this rank."""
    views: ViewConfig
    dtype: torch.dtype = torch.float32
    """dtype of the views, one of `kernels.formats.FORMATS`."""
    device: str = "cpu"
    seed: int = 0
    rank: int | None = None
    world_size: int | None = None
    shuffle: bool = True
    drop_last: bool = True
    """Drop the samples that do not fill the last global batch; if False, keep them in a short batch
    and leave bad samples out instead of replacing them: each sample comes exactly once."""
    block: ShuffleBlock | None = None
    """Shards shuffled together, or "all"; a loader sets None to `Dataset.default_block`."""
    shard_in_id: bool | None = None
    """Whether sample ids take in the shards' names; a loader sets None to `Dataset.keys_repeat`."""
    threads: int | None = None
    """Decoding threads; None for the CPUs that this process may use, less those that a device's
    main thread needs; see `loader_threads`."""
    prefetch: int = 3
    """Batches prepared at once."""
    decode: str = "exact"
    """One of `DECODING`."""
    scan_index_gb: float = SCAN_INDEX_GB
    """Most gigabytes of scan indexes in the folder of the indexes; 0 for none, see `ScanIndex`."""
    names: bool = False
    """Whether batches have their samples' shards and keys, `Batch.names`."""
    form: str | Form | None = None
    """What a batch is delivered as: one of `FORMS`, or a function of it; None for the batch."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "prefetch", "threads"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InvalidInput(f"`{name}` must be at least 1, got {count}")
        if self.block is not None:
            check_block(self.block, "shuffle_block")
        if self.dtype not in FORMATS:
            raise InvalidInput(
                f"`dtype` must be one of {', '.join(FORMAT_NAMES)}, got {self.dtype}"
            )
        if self.decode not in DECODING:
            raise InvalidInput(f"`decode` must be {' or '.join(DECODING)}, got {self.decode!r}")
        if not self.scan_index_gb >= 0:
            raise InvalidInput(
                "`scan_index_gb` must be at least 0, which switches scan indexes off, "
                f"got {self.scan_index_gb}"
            )
        find_form(self.form)
        if (self.rank is None) != (self.world_size is None):
            raise InvalidInput(
                "`rank` and `world_size` must be given together or not at all, "
                f"got {self.rank} and {self.world_size}"
            )
        if self.rank is None or self.world_size is None:
            return
        if not 0 <= self.rank < self.world_size:
            raise InvalidInput(
                f"`rank` must be in [0, {self.world_size - 1}] with `world_size` "
                f"{self.world_size}, got {self.rank}"
            )

    @property
    def seam(self) -> bool:
        """Whether the backend stops at the seam: cropped and resized uint8 views.

        On a device other than the CPU, `DeviceStage` makes the finished views from them.
        """
        return torch.device(self.device).type != "cpu"

    @property
    def pixel_dtype(self) -> torch.dtype:
        """dtype of `Rendered.pixels`: uint8 at the seam, `dtype` otherwise."""
        return torch.uint8 if self.seam else self.dtype

    @property
    def thread_count(self) -> int:
        """`threads`, or those of `loader_threads`."""
        return self.threads or loader_threads(torch.device(self.device).type)
