"""The contract of every loader: order, epochs, resuming, replacement of bad samples, ownership.

A backend implements `Loader._run`, which renders requests, and nothing else of the contract.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ..kernels.errors import InvalidInput, MaskCoError
from ..kernels.plan import plan
from .adapters.forms import find_form
from .batch import Batch
from .buffers import BufferPool
from .config import LoaderConfig
from .device_stage import DeviceStage, make_streams
from .fields import decode_field
from .order import batch_count
from .quarantine import BadSample, Quarantine
from .ranks import ranks_of_process
from .request import Rendered, Request, extras
from .shards.dataset import Dataset
from .shards.decode import BadImage, Decoded

STATE_VERSION = 2
"""Bump when a position has other fields; `_ADDED` has the values of those that older ones lack."""
_ADDED = {"version": STATE_VERSION, "shard_in_id": False}
"""What the positions of version 1 lack: ids were hashes of the keys alone."""
_CHOSEN = ("block", "shard_in_id")
"""Settings that a loader chooses where they are not given, and takes over from a position."""


class LoaderForked(MaskCoError, RuntimeError):
    """A loader is used in a process that was forked while it delivered batches."""


class IteratorSuperseded(MaskCoError, RuntimeError):
    """An iterator is used after another one of its loader has begun, or the loader was moved."""


class Loader(ABC):
    """An iterable over `Batch` with an exact `len()` and an exact, portable position.

    With the option `form` it delivers another form of each batch.

    - `iter()` starts nothing; epoch, rank and position are read at the first `next()`.
    - A pass is a whole epoch, or its rest after `load_state_dict`.
    - The epoch advances with its last batch, and where the last pass was left early.
    - `state_dict` counts delivered batches.
    - A newer iterator ends the older one, which then raises; a dropped iterator releases its
      threads.
    - A copy, by `copy.deepcopy` or pickle, has the settings, the position and the quarantine.
    """

    batch_sampler = None
    """As of a `DataLoader` without automatic batching; Lightning reads it."""

    def __init__(
        self, dataset: Dataset, config: LoaderConfig, *, max_bad_share: float = 0.1
    ) -> None:
        self.dataset = dataset
        self._chosen = tuple(name for name in _CHOSEN if getattr(config, name) is None)
        """The settings of `_CHOSEN` that were not given."""
        if config.block is None:
            config = dataclasses.replace(config, block=dataset.default_block)
        if config.shard_in_id is None:
            config = dataclasses.replace(config, shard_in_id=dataset.keys_repeat)
        self.config = config
        self.before_device_work: Callable[[], None] = _nothing
        """Called on a device for each batch, when the current stream waits for its copy and before
        its views are finished there; not called on a CPU. A trainer's meter records an event."""
        self.quarantine = Quarantine(dataset.bad, max_share=max_bad_share)
        dataset.report_to(self.quarantine)
        self._pool = BufferPool(
            (config.batch_size * config.views.layout.elements,),
            config.pixel_dtype,
            page_locked=config.device.startswith("cuda"),
        )
        self._form = find_form(config.form)
        self._epoch = 0
        self._consumed = 0
        self._passing = False
        """Whether a pass has brought the loader to its position; a new pass then begins anew."""
        self._following = 0
        """The epoch of the next pass, if the present one is left early."""
        self._current: weakref.ref[_EpochIterator] | None = None

    @abstractmethod
    def _run(self, requests: Iterator[Request]) -> Generator[Rendered, None, None]:
        """Render the requests in order. Closing the generator releases all threads and buffers.

        On closing, call `dataset.cancel_reads` before waiting for threads that read: otherwise they
        may wait for a server.
        """

    @property
    def batch_size(self) -> int:
        """Samples per batch on this rank."""
        return self.config.batch_size

    @property
    def global_batch_size(self) -> int:
        """Samples per batch over all ranks."""
        return self.config.batch_size * self._ranks()[1]

    @property
    def sampler(self) -> "Loader":
        """The loader itself: trainers call `loader.sampler.set_epoch`."""
        return self

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._epoch

    def _ranks(self) -> tuple[int, int]:
        """(rank, world size): given, else those of `ranks_of_process`."""
        if self.config.rank is not None and self.config.world_size is not None:
            return self.config.rank, self.config.world_size
        return ranks_of_process()

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank; equal on every rank with `drop_last`.

        Without `drop_last` a batch is not delivered if all of its samples turn out to be bad.
        """
        return self._batches_from(0)

    def _batches_from(self, consumed: int) -> int:
        """This rank's batches after the first `consumed` samples of an epoch."""
        config, (rank, world_size) = self.config, self._ranks()
        samples = len(self.dataset) - consumed
        return batch_count(
            samples, config.batch_size, world_size, rank=rank, drop_last=config.drop_last
        )

    def __iter__(self) -> "_EpochIterator":
        return _EpochIterator(self)

    def __repr__(self) -> str:
        config = self.config
        dtype = str(config.dtype).removeprefix("torch.")
        ranks = "" if config.rank is None else f", rank {config.rank} of {config.world_size}"
        return (
            f"{type(self).__name__}({len(self.dataset)} samples in batches of {config.batch_size}"
            f"{ranks}: {config.views.layout} {dtype} on "
            f"{config.device}; seed {config.seed}, epoch {self._epoch})"
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass.

        The current one keeps a position that `load_state_dict` has set, and a running pass; another
        one ends a running pass.
        """
        if epoch != self._epoch:
            self._end_current(f"set_epoch({epoch})")
            self._epoch, self._consumed, self._passing = int(epoch), 0, False
        self._following = int(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position of the next batch as a few integers.

        Valid for any backend and thread count; see `load_state_dict` for other world sizes.
        """
        return {
            "version": STATE_VERSION,
            "epoch": self._epoch,
            "consumed": self._consumed,
            "seed": self.config.seed,
            "shuffle": self.config.shuffle,
            "block": self.config.block,
            "shard_in_id": self.config.shard_in_id,
            "dataset": self.dataset.fingerprint,
            "batch_size": self.config.batch_size,
            "world_size": self._ranks()[1],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next pass at the position of `state`. InvalidInput names a differing setting.

        The world size may differ if the batch per rank or the global batch is the same. Settings
        that this loader chose by itself, `shuffle_block` and the kind of ids, become those of the
        position.
        """
        if state.get("version") == 1:
            state = {**state, **_ADDED}
        mine = {**self.state_dict(), **{name: state.get(name) for name in self._chosen}}
        for name in ("version", "seed", "shuffle", *_CHOSEN, "dataset"):
            if state.get(name) != mine[name]:
                raise InvalidInput(
                    f"the saved position has {name} {state.get(name)!r}, this loader "
                    f"{mine[name]!r}: the position does not apply to this loader; pass the same "
                    "shards and settings, or start a new run"
                )
        saved_global_batch = state["batch_size"] * state["world_size"]
        same_rank_batch = state["batch_size"] == mine["batch_size"]
        if not same_rank_batch and saved_global_batch != self.global_batch_size:
            raise InvalidInput(
                f"the saved position has batch_size {state['batch_size']} on "
                f"{state['world_size']} ranks, this loader {mine['batch_size']} on "
                f"{mine['world_size']}: keep the batch per rank or the global batch"
            )
        self._end_current("load_state_dict")
        taken_over = {name: state[name] for name in self._chosen}
        self.config = dataclasses.replace(self.config, **taken_over)
        self._epoch, self._consumed = int(state["epoch"]), int(state["consumed"])
        self._passing = False

    def interrupt(self) -> None:
        """Stop waiting for servers, from any thread: until `close`, `next()` may raise ReadEnded.

        The position stays before the batch that was not delivered.
        """
        self.dataset.interrupt()

    def close(self) -> None:
        """End the current iterator and close the shards. The loader can be iterated again."""
        self._end_current()
        self.dataset.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Settings, position and quarantine; threads, buffers and iterators are not copied."""
        position = (self._epoch, self._consumed, self._passing, self._following, self._chosen)
        return _remade, (type(self), self._arguments(), position, self.quarantine)

    def _arguments(self) -> dict[str, Any]:
        """The constructor's arguments that make this loader again."""
        return {
            "dataset": self.dataset,
            "config": self.config,
            "max_bad_share": self.quarantine.max_share,
        }

    def _end_current(self, by: str | None = None) -> None:
        """End the running pass; its iterator raises that `by` did so, or None: just ends."""
        current = self._current() if self._current is not None else None
        if current is not None:
            current.require_own_process()
            current.supersede(by)
        self._current = None

    def _begin_pass(self) -> None:
        """Leave the position of a pass that was left early: the next epoch begins."""
        self._end_current("a newer iterator")
        if self._passing:
            self._epoch, self._consumed, self._passing = self._following, 0, False

    def _advance(self, samples: int) -> None:
        """Count a delivered batch and the batches before it that were left out."""
        if not self._passing:
            self._passing, self._following = True, self._epoch + 1
        self._consumed += samples

    def _end_epoch(self) -> None:
        """The pass is complete."""
        self._epoch, self._consumed, self._passing = self._epoch + 1, 0, False

    def _rendered(
        self, rank: int, world_size: int, batches: int
    ) -> Generator[Rendered, None, None]:
        """Render this rank's next `batches` batches from the present epoch and position."""
        return self._run(self._requests(rank, world_size, batches))

    def _requests(self, rank: int, world_size: int, batches: int) -> Iterator[Request]:
        epoch = self._epoch
        for indices in self.dataset.batches(
            self.config,
            epoch=epoch,
            consumed=self._consumed,
            rank=rank,
            world_size=world_size,
            count=batches,
        ):
            yield self._request(indices, epoch)

    def _request(self, indices: np.ndarray, epoch: int) -> Request:
        """The request for samples `indices` (N,): their plans are drawn here."""
        samples, config = self.dataset.samples[indices], self.config
        rows = plan(
            config.views,
            config.seed,
            epoch,
            self._sample_ids(indices),
            samples["height"],
            samples["width"],
        )
        request = Request.make(config, epoch, indices, rows)
        if self.dataset.fields:
            request.fields = [None] * len(indices)
        return request

    def _sample_ids(self, indices: np.ndarray) -> np.ndarray:
        """The ids (N,) int64 of samples `indices` (N,)."""
        return self.dataset.sample_ids(indices, shard_in_id=bool(self.config.shard_in_id))

    def _fetch(
        self, request: Request, n: int, decode: Callable[[bytes, np.void, int], Decoded]
    ) -> Decoded:
        """Read and decode sample `n` of a request, or its substitute; called from any thread.

        `decode(data, record, shrink)` raises BadImage for a bad sample. That sample is quarantined
        and replaced by the next one in the shards' order that decodes, with the substitute's own
        plan. Replacement depends on the data alone: every loader and thread count replaces alike.

        Without `drop_last` it is not replaced, because the substitute would come twice. A black
        image stands in for it, until `Rendered.without_left_out` removes the sample.
        """
        substitutes = self.dataset.substitutes(int(request.indices[n]))
        if not self.config.drop_last:
            substitutes = itertools.islice(substitutes, 1)
        for index in substitutes:
            if index in self.quarantine:
                continue
            if index != request.indices[n]:
                request.replace(n, self._request(np.array([index]), request.epoch))
            if request.fields is not None:
                self._fetch_fields(request, n)
            sample = self.dataset.samples[index]
            try:
                decoded = decode(self.dataset.read(index), sample, int(request.shrinks[n]))
            except BadImage as reason:
                self._reject(index, str(reason))
                continue
            self.quarantine.count_decoded()
            return decoded
        if not self.config.drop_last:
            request.left_out[n] = True
            sample = self.dataset.samples[int(request.indices[n])]
            return Decoded(np.zeros((sample["height"], sample["width"], 3), np.uint8))
        raise self.quarantine.too_many()  # another thread quarantined the last sample

    def _fetch_fields(self, request: Request, n: int) -> None:
        """Read and decode the fields of sample `n`, unless it has them; called from any thread.

        Called before its image is read, as a remote shard may be released after its last image.
        """
        if request.fields is None or request.fields[n] is not None:
            return
        index = int(request.indices[n])
        values: list[Any] = []
        for field, data in zip(self.dataset.fields, self.dataset.read_fields(index)):
            try:
                values.append(None if data is None else decode_field(field, data))
            except ValueError as reason:
                values.append(None)
                self.quarantine.note(self._bad_sample(index, str(reason), "field"))
        request.fields[n] = values

    def _reject(self, index: int, reason: str) -> None:
        self.quarantine.add(index, self._bad_sample(index, reason, "decode"), len(self.dataset))

    def _bad_sample(self, index: int, reason: str, found: str) -> BadSample:
        shard, number = self.dataset.locate(index)
        return BadSample(shard=shard.path, key=shard.key(number), reason=reason, found=found)

    def _deliver(self, rendered: Generator[Rendered, None, None]) -> Generator[Batch, None, None]:
        """Make batches as rendered, or by `DeviceStage` where the backend stops at the seam."""
        if self.config.seam:
            device = torch.device(self.config.device)
            stage = DeviceStage(
                self.dataset,
                self.config,
                make_streams(device),
                device,
                before_work=lambda: self.before_device_work(),
            )
            yield from stage.batches(rendered)
            return
        with contextlib.closing(rendered):
            for one in rendered:
                batch = self._batch(one)
                # Only the caller may refer to the buffer, so that it is reused once they drop it.
                del one
                yield batch
                del batch

    def _batch(self, rendered: Rendered) -> Batch:
        """The batch of views finished on the CPU: pixels are passed on, other arrays copied."""
        views = self.config.views
        indices = rendered.request.indices
        samples = self.dataset.samples[indices]
        named = rendered.request.rows.view(views.plan_dtype)[:, 0]
        return Batch(
            views=tuple(view.permute(0, 3, 1, 2) for view in rendered.views),
            sample_id=torch.from_numpy(self._sample_ids(indices).copy()),
            target=torch.from_numpy(samples["target"].copy()),
            index=torch.from_numpy(indices.copy()),
            masked_box=torch.from_numpy(named["masked_box"].copy()) if views.boxes else None,
            key_boxes=torch.from_numpy(named["key_boxes"].copy()) if views.boxes else None,
            patch_corners=(
                torch.from_numpy(named["patch_corners"].astype(np.int64))
                if views.patch_grid
                else None
            ),
            **extras(self.dataset, self.config, rendered.request),
        )


class _EpochIterator:
    """One pass over the epoch, or over its rest from a loaded position."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._batches: Generator[Batch, None, None] | None = None
        self._process: int | None = None
        """The process whose threads render the batches; None before the first `next()`."""
        self._left: int | None = None
        """Batches left; None before the first `next()`."""
        self._passed: collections.deque[int] = collections.deque()
        """For each batch that is rendered and not yet delivered, the batches of the plan that its
        delivery completes: itself, and batches before it without a usable sample."""
        self._superseded: str | None = None
        """What ended this iterator before its time."""

    def _start(self) -> None:
        loader = self._loader
        if get_worker_info() is not None:
            raise InvalidInput(
                "a loader must not be iterated in the workers of a DataLoader, each of which would "
                "deliver every batch: iterate the loader itself, which has threads of its own, and "
                "with loader_process=True a process"
            )
        loader._begin_pass()
        self._process = os.getpid()
        rank, world_size = loader._ranks()
        self._left = loader._batches_from(loader._consumed)
        if self._left == 0 and loader._consumed == 0 and loader.config.drop_last:
            raise InvalidInput(
                f"{len(loader.dataset)} usable samples make no batch of "
                f"{loader.config.batch_size} on each of {world_size} ranks: lower the batch size, "
                "or pass more shards"
            )
        self._global_batch = loader.config.batch_size * world_size
        rendered = loader._rendered(rank, world_size, self._left)
        self._batches = loader._deliver(_without_left_out(rendered, self._passed))
        loader._current = weakref.ref(self)

    def __len__(self) -> int:
        """Batches of a whole epoch, however many are left."""
        return len(self._loader)

    def __iter__(self) -> "_EpochIterator":
        return self

    def __next__(self) -> Any:
        """The next `Batch`, or what the option `form` makes of it."""
        if self._superseded is not None:
            raise IteratorSuperseded(
                f"{self._superseded} ended this iterator in mid-epoch, since a loader has one "
                "position: to read meanwhile, make a second loader, such as copy.deepcopy(loader)"
            )
        if self._left is None:
            self._start()
        loader = self._loader
        self.require_own_process()
        try:
            if not self._left or self._batches is None:
                raise StopIteration
            batch = next(self._batches)
            if loader._form is not None:
                batch = loader._form(batch)
        except StopIteration:
            is_current = loader._current is not None and loader._current() is self
            if self._batches is not None and is_current:
                # No batch is left at a resumed position, for this rank, or because the last
                # batches have no usable sample: the epoch is over.
                loader._end_epoch()
            self.close()
            raise
        except BaseException:
            self.close()
            raise
        passed = self._passed.popleft()
        self._left -= passed
        loader._advance(passed * self._global_batch)
        if self._left == 0:
            loader._end_epoch()
            self.close()
        return batch

    def require_own_process(self) -> None:
        """Raise LoaderForked in a process that was forked in mid-epoch: it has no such threads."""
        if self._process not in (None, os.getpid()):
            raise LoaderForked(
                f"this loader is in mid-epoch in process {self._process}, and process "
                f"{os.getpid()} was forked from it, which copies no threads: make a loader in "
                "each process, or start processes by 'spawn'"
            )

    def supersede(self, by: str | None) -> None:
        """Close before the end; a later `next()` says what did so, or with None just ends."""
        if self._batches is not None:
            self._superseded = by
        self.close()

    def close(self) -> None:
        """Release threads and buffers; a later `next()` raises StopIteration."""
        if self._batches is not None and self._process == os.getpid():
            self._batches.close()
            self._loader.dataset.cancel_reads()
            self._batches = None
        self._left = 0

    def __del__(self) -> None:
        self.close()


def _nothing() -> None:
    """Do nothing."""


def _remade(
    loader_class: type[Loader],
    arguments: dict[str, Any],
    position: tuple[int, int, bool, int, tuple[str, ...]],
    quarantine: Quarantine,
) -> Loader:
    """The copy of a loader; see `Loader.__reduce__`."""
    loader = loader_class(**arguments)
    loader._epoch, loader._consumed, loader._passing, loader._following, loader._chosen = position
    loader.quarantine = quarantine
    loader.dataset.report_to(quarantine)
    return loader


def _without_left_out(
    rendered: Generator[Rendered, None, None], passed: collections.deque[int]
) -> Generator[Rendered, None, None]:
    """Remove the samples that are left out, and batches that have no other.

    For each batch, `passed` gets 1 plus the number of batches removed since the one before it.
    Closing closes `rendered`.
    """
    with contextlib.closing(rendered):
        count = 0
        for one in rendered:
            count += 1
            kept = [one.without_left_out()]
            del one
            if len(kept[0].request.indices):
                passed.append(count)
                count = 0
                yield kept.pop()  # no local keeps the buffer alive meanwhile
