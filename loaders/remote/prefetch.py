"""`ShardPrefetcher`: downloads an epoch's shards in order of first use, and releases each after its
last sample."""

import bisect
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import numpy as np

from ...kernels.errors import InvalidInput
from .cache import Pin, ShardCache
from .store import RemoteShard

ROOM_POLL = 0.2
"""Interval at which a download without room tries again, seconds."""


class ShardPrefetcher:
    """Pins the shards in use and downloads the next ones, in the order of the epoch's samples.

    The order comes in parts, each with all of its shards' samples, and is planned a part at a time.

    A shard is released when this process has read all of its samples in the order. A later read of
    the shard (a repeated sample, or a substitute for a bad one) is the caller's business. Methods
    may be called from any thread.
    """

    def __init__(
        self,
        cache: ShardCache,
        shards: Sequence[RemoteShard | None],
        ends: np.ndarray,
        parts: Iterable[np.ndarray],
        stop: threading.Event,
        *,
        planned: int = 1,
    ) -> None:
        """Start the download threads.

        `shards`: the dataset's shards, None for each local one. `ends`: the samples of shard `k`
        are numbered up to `ends[k]`, exclusive. `parts`: the samples that this process will read,
        in order, in arrays (n,) that have no shard in common. `stop`: cancels all waiting once it
        is set; `close` must still be called. `planned`: samples to plan before the first download.

        Raises InvalidInput where the cache is too small for the parts that are planned.
        """
        self._cache = cache
        self._shards = shards
        self._ends = np.asarray(ends)
        self._parts = iter(parts)
        self._planned = 0
        self._numbers: list[int] = []
        self._first: list[int] = []
        """The remote shards that are planned, in order of first use, and their first positions."""
        self._last: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._unread: dict[int, np.ndarray] = {}
        """Of each shard the last position, the samples left to read, and which of its samples they
        are, (size,) bool."""
        self._pins: dict[int, Future[Pin | None]] = {}
        self._changed = threading.Condition()
        self._position = 0
        self._next = 0
        self._stop = stop
        self.plan(planned)
        count = cache.config.downloads if cache.config.ahead else 0
        self._threads = [
            threading.Thread(target=self._run, name=f"remote-{i}", daemon=True)
            for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def plan(self, position: int) -> None:
        """Plan the parts of the order up to `position`. Raises InvalidInput as `__init__`."""
        with self._changed:
            while self._planned < position and self._plan_part():
                pass

    def _plan_part(self) -> bool:
        """Plan the next part, with the lock held; False where there is none."""
        indices = next(self._parts, None)
        if indices is None:
            return False
        visits = np.searchsorted(self._ends, indices, side="right")  # (n,) shard of each sample
        by_shard = np.argsort(visits, kind="stable")
        numbers, begins = np.unique(visits[by_shard], return_index=True)
        found = []
        for number, places in zip(numbers.tolist(), np.split(by_shard, begins[1:])):
            if self._shards[number] is not None:
                found.append((int(places[0]), int(places[-1]), number, indices[places]))
        found.sort(key=lambda visit: visit[0])
        self._check_limit(found)
        for first, last, number, samples in found:
            begin = int(self._ends[number - 1]) if number else 0
            unread = np.zeros(int(self._ends[number]) - begin, bool)
            unread[samples - begin] = True
            self._numbers.append(number)
            self._first.append(self._planned + first)
            self._last[number] = self._planned + last
            self._left[number] = len(samples)
            self._unread[number] = unread
        self._planned += len(indices)
        return True

    def _check_limit(self, visits: list[tuple[int, int, int, np.ndarray]]) -> None:
        """Raise InvalidInput where the shards needed at the same time exceed the cache's limit.

        `visits`: first and last position, number and samples of a part's shards, by first position.
        """
        sizes = np.array([self._shard(number).size for _, _, number, _ in visits], np.int64)
        first = np.array([visit[0] for visit in visits], np.int64)
        last = np.array([visit[1] for visit in visits], np.int64)
        # Bytes of the shards begun so far, less those of the shards that have ended before.
        ended = np.concatenate([[0], np.cumsum(sizes[np.argsort(last)])])
        needed = np.cumsum(sizes) - ended[np.searchsorted(np.sort(last), first)]
        most = int(needed.max(initial=0))
        if most > self._cache.limit:
            raise InvalidInput(
                f"the cache must hold the {most / 1e9:.3g} GB of shards that the shuffle reads at "
                f"the same time, but may hold {self._cache.config.cache_gb:g} GB. Give "
                f"--remote.cache-gb {2 * most / 1e9:.3g} (twice the need, which leaves room for "
                "the next shards), a smaller --shuffle-block, smaller shards, or --remote.mode "
                "stream"
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
            unread, place = self._unread[number], index - int(self._ends[number])
            if unread[place]:  # counted from the shard's end
                unread[place] = False
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
            while not self._stop.is_set():
                begun = bisect.bisect_right(self._first, self._position)
                if self._next >= begun + self._cache.config.ahead:
                    self._changed.wait()
                elif self._next < len(self._numbers):
                    self._next += 1
                    return self._numbers[self._next - 1]
                elif not self._plan_part():
                    break
        return None
