"""Make the scan index of a whole dataset, ahead of its first epoch."""

import collections
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ...kernels.jpeg.checkpoints import CHECKPOINT_DTYPE, find_checkpoints
from ...kernels.views import ViewConfig
from ..config import LoaderConfig
from ..order import batch_count
from ..shards.dataset import Dataset
from ..system.cpus import usable_cpus
from ..system.progress import Progress, no_progress
from .scan_index import ScanIndex

SCAN_BATCH = 64
"""Images that a thread takes at once."""


def scan_dataset(
    dataset: Dataset,
    *,
    limit: float,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> int:
    """Scan the JPEGs that are not scanned yet; returns how many have checkpoints then.

    `limit`: as for `ScanIndex`. `threads`: default, the CPUs that this process may use. `progress`
    is called after each batch of samples. Raises as `Dataset.read`.
    """
    scan_index = ScanIndex(dataset, limit=limit)
    threads = threads or usable_cpus()
    # In the order of the shards; `batches` also downloads remote ones ahead.
    config = LoaderConfig(
        batch_size=SCAN_BATCH,
        views=ViewConfig.evaluation(),
        shuffle=False,
        drop_last=False,
        prefetch=2 * threads,
    )
    count = batch_count(len(dataset), SCAN_BATCH, 1, drop_last=False)
    batches = dataset.batches(config, epoch=0, consumed=0, rank=0, world_size=1, count=count)
    pending: collections.deque[tuple[int, Future[int]]] = collections.deque()
    done = scanned = 0

    def finish_oldest() -> None:
        nonlocal done, scanned
        size, future = pending.popleft()
        done, scanned = done + size, scanned + future.result()
        progress(f"images scanned, {scanned} with checkpoints", done, len(dataset))

    with ThreadPoolExecutor(threads, thread_name_prefix="scan") as pool:
        try:
            for batch in batches:
                pending.append(
                    (len(batch), pool.submit(_scan, dataset, scan_index, batch.tolist()))
                )
                if len(pending) == config.prefetch:
                    finish_oldest()
            while pending:
                finish_oldest()
        finally:
            dataset.cancel_reads()
            pool.shutdown(cancel_futures=True)
            scan_index.close()
    return scanned


def _scan(dataset: Dataset, scan_index: ScanIndex, indices: Sequence[int]) -> int:
    """Scan those samples that are not scanned yet; returns how many have checkpoints then."""
    scanned = 0
    covered = [index for index in indices if scan_index.covers(index)]
    for index, known in zip(covered, scan_index.read_each(covered)):
        if known is not None:
            scanned += bool(known.rows)
        elif scan_index.writes:
            data = dataset.read(index)
            rows = find_checkpoints(data)
            scanned += rows is not None
            rows = np.empty(0, CHECKPOINT_DTYPE) if rows is None else rows
            scan_index.add([index], [data], [rows], wait=True)
    return scanned
