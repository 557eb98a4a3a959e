"""`ShardPrefetcher`: downloads an epoch's shards in order of first use, and releases each after its
last sample."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from ...kernels.errors import InvalidInput
from .cache import Pin, ShardCache
from .store import RemoteShard

ROOM_POLL = 0.2
"""Interval at which a download without room tries again, seconds."""


class ShardPrefetcher:
    """Pins the shards in use and downloads the next ones, in the order of the epoch's samples.

    A shard is released when this process has read all of its samples in the order. A later read of
    the shard (a repeated sample, or a substitute for a bad one) is the caller's business. Methods
    may be called from any thread.
    """

    def __init__(
        self,
        cache: ShardCache,
        shards: Sequence[RemoteShard | None],
        ends: Sequence[int],
        indices: np.ndarray,
        stop: threading.Event,
    ) -> None:
        """Start the download threads.

        `shards`: the dataset's shards, None for each local one. `ends`: the samples of shard `k`
        are numbered up to `ends[k]`, exclusive. `indices` (n,): the samples that this process will
        read, in order. `stop`: cancels all waiting once it is set; `close` must still be called.

        Raises InvalidInput where the cache is too small for the order.
        """
        self._cache = cache
        self._shards = shards
        visits = np.searchsorted(ends, indices, side="right")  # (n,) shard of each sample
        numbers, first, counts = np.unique(visits, return_index=True, return_counts=True)
        last = len(visits) - 1 - np.unique(visits[::-1], return_index=True)[1]
        remote = np.array([shards[number] is not None for number in numbers], bool)
        by_first = np.argsort(first[remote])
        self._numbers = numbers[remote][by_first].tolist()
        self._first = first[remote][by_first]
        self._last = dict(zip(self._numbers, last[remote][by_first].tolist()))
        self._left = dict(zip(self._numbers, counts[remote][by_first].tolist()))
        self._check_limit()
        self._unread = np.zeros(ends[-1], bool)
        self._unread[indices] = True
        self._pins: dict[int, Future[Pin | None]] = {}
        self._changed = threading.Condition()
        self._position = 0
        self._next = 0
        self._stop = stop
        count = min(cache.config.downloads, len(self._numbers)) if cache.config.ahead else 0
        self._threads = [
            threading.Thread(target=self._run, name=f"remote-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _check_limit(self) -> None:
        """Raise InvalidInput where the shards needed at the same time exceed the cache's limit."""
        sizes = np.array([self._shard(number).size for number in self._numbers], np.int64)
        last = np.array(list(self._last.values()), np.int64)
        # Bytes of the shards begun so far, less those of the shards that have ended before.
        ended = np.concatenate([[0], np.cumsum(sizes[np.argsort(last)])])
        needed = np.cumsum(sizes) - ended[np.searchsorted(np.sort(last), self._first)]
        most = int(needed.max(initial=0))
        if most > self._cache.limit:
            raise InvalidInput(
                f"the cache must hold the {most / 1e9:.3g} GB of shards that the shuffle reads at "
                f"the same time, but may hold {self._cache.config.cache_gb:g} GB. Give "
                f"--remote.cache-gb {2 * most / 1e9:.3g} (twice the need, which leaves room for "
                "the next shards), smaller shards, or --remote.mode stream"
            )

    def advance(self, position: int) -> None:
        """Release the shards whose last sample stands before `position` in the order."""
        with self._changed:
            self._position = max(self._position, position)
            for number in [number for number in self._pins if self._last[number] < position]:
                self._release(number)
            self._changed.notify_all()

    def read(self, number: int, index: int, offset: int, size: int) -> bytes | None:
        """The bytes of sample `index` of shard `number`, waiting for the shard.

        None where the order no longer needs the shard. Raises as `ShardCache.acquire`.
        """
        pin = self.retain(number)
        if pin is None:
            return None
        with pin:
            data = pin.read(offset, size)
        with self._changed:
            if self._unread[index]:
                self._unread[index] = False
                self._left[number] -= 1
            if self._left[number] <= 0:
                self._release(number)
                self._changed.notify_all()
        return data

    def retain(self, number: int) -> Pin | None:
        """A reference to the pin of shard `number`, waiting for the shard; the caller releases it.

        None where the order no longer needs the shard. Raises as `ShardCache.acquire`.
        """
        pin = self._wait_for_pin(number)
        return pin if pin is not None and pin.retain() else None

    def close(self) -> None:
        """Cancel downloads and waiting reads, and release every shard.

        Incomplete downloads stay in the cache and are continued by the next one.
        """
        with self._changed:
            self._stop.set()
            for number in list(self._pins):
                self._release(number)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _shard(self, number: int) -> RemoteShard:
        shard = self._shards[number]
        assert shard is not None
        return shard

    def _wait_for_pin(self, number: int) -> Pin | None:
        """The shard's pin; None where all of its samples are read or `stop` is set."""
        while self._left.get(number, 0) > 0:
            future, mine = self._claim(number)
            if mine:
                self._resolve(number, future, required=True)
            pin = future.result()
            if pin is not None or self._stop.is_set():
                return pin
            # a prefetching thread found no room: this reader needs the shard now
        return None

    def _release(self, number: int) -> None:
        """Release the shard's pin, with the lock held; `_resolve` releases an unfinished one."""
        future = self._pins.get(number)
        if future is not None and future.done():
            del self._pins[number]
            pin = future.result()
            if pin is not None:
                pin.release()

    def _claim(self, number: int) -> tuple["Future[Pin | None]", bool]:
        """The future of the shard's pin, and whether the caller must resolve it."""
        with self._changed:
            future = self._pins.get(number)
            if future is not None:
                return future, False
            future = self._pins[number] = Future()
            return future, True

    def _resolve(self, number: int, future: "Future[Pin | None]", *, required: bool) -> None:
        """Acquire the shard, or find out why that fails, and hand the result to all who wait."""
        try:
            acquire = self._cache.acquire if required else self._cache.acquire_if_room
            pin = acquire(self._shard(number), self._stop)
        except BaseException as error:
            with self._changed:
                del self._pins[number]
            future.set_exception(error)
            return
        with self._changed:
            if pin is not None and self._stop.is_set():  # `close` may have released the others
                pin.release()
                pin = None
            if pin is None:
                del self._pins[number]
            future.set_result(pin)

    def _run(self) -> None:
        """Download shards until the order ends: the work of one thread.

        An error is left to the reader of the shard, who meets it again and raises it.
        """
        while (number := self._next_shard()) is not None:
            future, mine = self._claim(number)
            while mine:
                self._resolve(number, future, required=False)
                if future.exception() is not None or future.result() is not None:
                    break
                if self._stop.wait(ROOM_POLL) or self._left[number] <= 0:
                    break
                future, mine = self._claim(number)

    def _next_shard(self) -> int | None:
        """The next shard to download, waiting until it is near enough; None at the end."""
        with self._changed:
            while not self._stop.is_set() and self._next < len(self._numbers):
                begun = int(np.searchsorted(self._first, self._position, side="right"))
                if self._next < begun + self._cache.config.ahead:
                    self._next += 1
                    return self._numbers[self._next - 1]
                self._changed.wait()
        return None
