"""Has the shards of an epoch at hand when their samples are asked for, and lets go of them after
the last."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from ...kernels.errors import InvalidInput
from .cache import Pin, ShardCache
from .config import RemoteConfig
from .store import RemoteShard

ROOM_POLL = 0.2
"""Seconds between two looks whether other shards have made room."""


class ShardPrefetcher:
    """Keeps pins on the shards in use, and downloads the next ones in the order in which the epoch
    asks for them.

    A shard is let go when all of its samples that this process was to read have been read; what is
    read after that (a sample once more, or in place of a bad one) is not planned for. Any thread's.
    """

    def __init__(
        self,
        cache: ShardCache,
        shards: Sequence[RemoteShard | None],
        ends: Sequence[int],
        indices: np.ndarray,
        stop: threading.Event,
    ) -> None:
        """`indices` (n,): the samples that this process will read, in its order, of a numbering in
        which those of shard `k` end at `ends[k]`; shards that are None are local and none of our
        business. Setting `stop` ends all waiting; `close` is still to be called. ValueError where
        the cache is too small for the order.
        """
        config = cache.config
        self._cache, self._shards = cache, shards
        visits = np.searchsorted(ends, indices, side="right")
        numbers, first, counts = np.unique(visits, return_index=True, return_counts=True)
        last = len(visits) - 1 - np.unique(visits[::-1], return_index=True)[1]
        remote = np.array([shards[number] is not None for number in numbers], bool)
        by_first = np.argsort(first[remote])
        self._numbers = numbers[remote][by_first].tolist()
        self._first = first[remote][by_first]
        self._last = dict(zip(self._numbers, last[remote][by_first].tolist()))
        self._left = dict(zip(self._numbers, counts[remote][by_first].tolist()))
        self._check_bound(config)
        self._unread = np.zeros(ends[-1], bool)
        self._unread[indices] = True
        self._pins: dict[int, Future[Pin | None]] = {}
        self._moved = threading.Condition()
        self._position = 0
        self._next = 0
        self._stop = stop
        count = min(config.downloads, len(self._numbers)) if config.ahead else 0
        self._threads = [
            threading.Thread(target=self._run, name=f"remote-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _check_bound(self, config: RemoteConfig) -> None:
        """ValueError where the shards that are needed at a time exceed the cache."""
        sizes = np.array([self._shard(number).size for number in self._numbers], np.int64)
        last = np.array(list(self._last.values()), np.int64)
        ended = np.concatenate([[0], np.cumsum(sizes[np.argsort(last)])])
        needed = np.cumsum(sizes) - ended[np.searchsorted(np.sort(last), self._first)]
        most = int(needed.max(initial=0))
        if most > self._cache.bound:
            raise InvalidInput(
                f"the shuffle reads {most / 1e9:.3g} GB of shards at a time and the cache may hold "
                f"{config.cache_gb:g}: give --remote.cache-gb {2 * most / 1e9:.3g} (twice that: room for the next "
                "shards while these are read), smaller shards, or --remote.mode stream"
            )

    def passed(self, position: int) -> None:
        """Everything before this place in the order has been read, or never will be."""
        with self._moved:
            self._position = max(self._position, position)
            for number in [number for number in self._pins if self._last[number] < position]:
                self._let_go(number)
            self._moved.notify_all()

    def read(self, number: int, index: int, offset: int, size: int) -> bytes | None:
        """The bytes of sample `index` of shard `number`, waiting for it; None where the order is
        done with the shard.

        FileNotFoundError, RemoteError, ShardChanged as `ShardCache.acquire`.
        """
        if self._left.get(number, 0) <= 0:
            return None
        pin = None
        while pin is None:  # none, where it was on its way ahead of its turn and there was no room
            future, mine = self._begin(number)
            if mine:
                self._finish(number, future, needed=True)
            pin = future.result()
        data = pin.read(offset, size)
        with self._moved:
            if self._unread[index]:
                self._unread[index] = False
                self._left[number] -= 1
            if self._left[number] <= 0:
                self._let_go(number)
                self._moved.notify_all()
        return data

    def close(self) -> None:
        """End the downloads, and the waiting of those who read; let go of every shard. Parts stay
        for the next time."""
        with self._moved:
            self._stop.set()
            for number in list(self._pins):
                self._let_go(number)
            self._moved.notify_all()
        for thread in self._threads:
            thread.join()

    def _shard(self, number: int) -> RemoteShard:
        shard = self._shards[number]
        assert shard is not None
        return shard

    def _let_go(self, number: int) -> None:
        """Release the pin, with the lock held; one that is still being made is left to its maker."""
        future = self._pins.get(number)
        if future is not None and future.done():
            del self._pins[number]
            pin = future.result()
            if pin is not None:
                pin.release()

    def _begin(self, number: int) -> tuple["Future[Pin | None]", bool]:
        """The pin to be, and whether the caller is to make it."""
        with self._moved:
            future = self._pins.get(number)
            if future is not None:
                return future, False
            future = self._pins[number] = Future()
            return future, True

    def _finish(self, number: int, future: "Future[Pin | None]", *, needed: bool) -> None:
        """Make a pin, or find out why there is none, and tell those who wait for it."""
        try:
            acquire = self._cache.acquire if needed else self._cache.acquire_if_room
            pin = acquire(self._shard(number), self._stop)
        except BaseException as error:
            with self._moved:
                del self._pins[number]
            future.set_exception(error)
            return
        with self._moved:
            if pin is None or self._stop.is_set():
                del self._pins[number]
            future.set_result(pin)

    def _run(self) -> None:
        """One thread that downloads ahead. A shard that it fails to get is left to its reader, who
        sees why."""
        while (number := self._take()) is not None:
            future, mine = self._begin(number)
            while mine:
                self._finish(number, future, needed=False)
                if future.exception() is not None or future.result() is not None:
                    break
                if self._stop.wait(ROOM_POLL) or self._left[number] <= 0:
                    break
                future, mine = self._begin(number)

    def _take(self) -> int | None:
        """The number of the next shard whose turn is near; None at the end."""
        with self._moved:
            while not self._stop.is_set() and self._next < len(self._numbers):
                begun = int(np.searchsorted(self._first, self._position, side="right"))
                if self._next < begun + self._cache.config.ahead:
                    self._next += 1
                    return self._numbers[self._next - 1]
                self._moved.wait()
        return None
