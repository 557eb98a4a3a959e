"""The `bench` command: how fast each loader feeds a trainer on your shards, beside what others do
with the same images.

Every row runs in a process of its own, which is asked for one epoch at a time; rounds go through
all rows in turn, so that what else the machine does falls on all alike. The rows whose turn it is
not are stopped: a pipeline that reads ahead beyond its epoch would take time from the next row
(DALI's two batches halved the next one's speed). A row of ours is timed only when its views are
those of the reference loader; a peer's row says how its recipe differs.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import platform
import signal
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import torch

from maskco_fast.bench.rows import ROWS, Setting
from maskco_fast.bench.stages import print_stages
from maskco_fast.errors import say
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders.system.cpus import usable_cpus
from maskco_fast.loaders.system.files import write_json
from maskco_fast.pictures.bars import bench_picture

DEFAULT_ROWS = "native,torchvision_pil,torchvision_v2,decode_only,cached_batch"


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time loaders, ours and others', side by side on your shards."""

    shards: tuple[str, ...]
    """Tar shards: paths, globs, `{0000..0331}` ranges, or folders of images."""
    rows: str = DEFAULT_ROWS
    """What to time, separated by commas; "all" for every row, "help" to list them."""
    rounds: int = 5
    """Epochs a row, in turn with the others, after one that is not counted. The median is reported.
    """
    images: int | None = None
    """At most so many images a round; None for all."""
    batch_size: int = 50
    """Images a batch."""
    size: int = 224
    """Side of the views, pixels."""
    workers: int | None = None
    """Threads of our loaders and worker processes of the others'; None for the CPUs that this
    process may use."""
    dtype: str = "float32"
    """Of our views: float32, float16, bfloat16 or uint8."""
    decode: Literal["exact", "fast"] = "exact"
    """Of our rows native and ffcv; fast has no parity gate, its difference stands beside its speed.
    """
    gpu_images_per_s: float = 2500.0
    """What one GPU asks for, for the count of cores that feed it (an assumption: give your
    trainer's own figure)."""
    ffcv_ssl: pathlib.Path | None = None
    """A checkout of FFCV-SSL that has been built in place, for its row."""
    stages: bool = False
    """Also print the native path's milliseconds a stage."""
    json: pathlib.Path | None = None
    """Write the rows here as a JSON list."""
    picture: pathlib.Path | None = None
    """Write a bar chart here (PNG)."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch_size < 1:
            raise InvalidInput(
                f"rounds {self.rounds} and batch_size {self.batch_size} want at least 1"
            )

    @property
    def setting(self) -> Setting:
        """What every row is given."""
        return Setting(
            shards=self.shards,
            batch_size=self.batch_size,
            size=self.size,
            workers=self.workers or usable_cpus(),
            dtype=self.dtype,
            decode=self.decode,
            images=self.images,
            ffcv_ssl=self.ffcv_ssl,
        )


@dataclass
class Result:
    """One row's figures."""

    name: str
    kind: str
    """ours, peer or bound."""
    what: str
    parity: str
    """Of ours: the difference from the reference that its gate let through. Of a peer: how its
    recipe differs."""
    error: str | None = None
    images_per_s: float | None = None
    """Median over the rounds."""
    spread: list[float] = dataclasses.field(default_factory=list)
    """Slowest and fastest round, images/s."""
    cpu_ms_per_image: float | None = None
    """Median CPU time of the row's process and its workers."""
    peak_mb: float | None = None
    """Resident memory of the row's processes at its highest, shared pages counted in each."""
    first_batch_s: float | None = None
    """From asking for the first epoch to its first batch, compilation from a warm cache included.
    """
    of_decoding: float | None = None
    """Its images/s over those of `decode_only` in the same rounds; median."""
    rounds: list[float] = dataclasses.field(default_factory=list)
    """Images/s of each round."""


def bench(config: BenchConfig) -> int:
    """Run the rows, print the table and what it means; returns 0, or 1 where a row of ours is not
    the reference's."""
    if config.rows == "help":
        print("\n".join(f"{name:18} {row.kind:6} {row.what}" for name, row in ROWS.items()))
        return 0
    names = (
        list(ROWS)
        if config.rows == "all"
        else [name.strip() for name in config.rows.split(",") if name.strip()]
    )
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        raise InvalidInput(f"there are no rows {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    torch.set_num_threads(1)
    runners = [_Runner(name, config.setting) for name in names]
    try:
        for runner in runners:
            runner.prepare()
        for number in range(config.rounds):
            for runner in runners:
                runner.round()
            say(
                f"round {number + 1} of {config.rounds}: "
                + ", ".join(runner.last for runner in runners)
            )
        results = [runner.finish() for runner in runners]
    finally:
        for runner in runners:
            runner.close()
    _compare(results)
    print(_table(results, config))
    if config.stages:
        print_stages(config.setting)
    if config.json is not None:
        _write_json(config.json, results)
    if config.picture is not None:
        bench_picture(
            [dataclasses.asdict(result) for result in results], config.picture, title=machine()
        )
    return int(any(result.kind == "ours" and result.error is not None for result in results))


def machine() -> str:
    """The machine and versions that figures belong to, in a line."""
    model = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):  # no Linux: the generic name stands
        pass
    return f"{model}, {usable_cpus()} CPUs; Python {platform.python_version()}, torch {torch.__version__}"


class _Runner:
    """The parent's side of one row."""

    def __init__(self, name: str, setting: Setting) -> None:
        row = ROWS[name]
        self.result = Result(name=name, kind=row.kind, what=row.what, parity=row.parity)
        self._cpu: list[float] = []
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, setting))
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it leads a process group from here on

    def _ask(self, question: str) -> Any:
        if self.result.error is not None:
            return None
        try:
            self._signal(signal.SIGCONT)
            self._pipe.send(question)
            answer = self._pipe.recv()
            self._signal(signal.SIGSTOP)
        except (EOFError, BrokenPipeError):
            self._process.join()
            answer = RuntimeError(f"its process ended with exit code {self._process.exitcode}")
        if isinstance(answer, Exception):
            self.result.error = f"{type(answer).__name__}: {answer}"
            say(f"{self.result.name}: {self.result.error}")
            return None
        return answer

    def _signal(self, number: int) -> None:
        """To the row's process and its workers, which are a process group."""
        with contextlib.suppress(ProcessLookupError):  # it has ended: the pipe tells
            os.killpg(self._process.pid or 0, number)

    def prepare(self) -> None:
        """Check parity, and run an epoch that is not counted: compilation, caches, page cache."""
        answer = self._ask("parity")
        if answer:
            self.result.parity = answer
        warm = self._ask("round")
        if warm:
            self.result.first_batch_s = round(warm["first"], 2)

    def round(self) -> None:
        """One epoch."""
        answer = self._ask("round")
        if answer:
            self.result.rounds.append(answer["images"] / answer["seconds"])
            self._cpu.append(1000 * answer["cpu"] / answer["images"])
            self.result.peak_mb = max(self.result.peak_mb or 0, round(answer["peak_mb"]))

    @property
    def last(self) -> str:
        """The newest round, for the progress line."""
        return (
            f"{self.result.name} {self.result.rounds[-1]:.0f}"
            if self.result.rounds
            else f"{self.result.name} -"
        )

    def finish(self) -> Result:
        """The figures over all rounds."""
        result = self.result
        if result.rounds:
            result.images_per_s = round(statistics.median(result.rounds), 1)
            result.spread = [round(min(result.rounds), 1), round(max(result.rounds), 1)]
            result.cpu_ms_per_image = round(statistics.median(self._cpu), 3)
        return result

    def close(self) -> None:
        """End the row's process."""
        self._signal(signal.SIGCONT)
        try:
            self._pipe.send("end")
        except (BrokenPipeError, OSError):  # it has ended already
            self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, name: str, setting: Setting) -> None:
    """The child's side: answer questions until told to end."""
    os.setpgid(0, 0)
    pipe.send("ready")
    running = None
    while (question := pipe.recv()) != "end":
        try:
            running = running or ROWS[name].open(setting)
            pipe.send(running.check_parity() if question == "parity" else _timed(running))
        except Exception as error:  # told to the parent, who shows it in the row
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    if running is not None:
        running.close()


def _timed(running: Any) -> dict[str, float]:
    """One epoch of a row: seconds, CPU seconds with its worker processes, images, memory."""
    cpu, began = _cpu_seconds(), time.perf_counter()
    images, first = 0, 0.0
    for count in running.epoch():
        first = first or time.perf_counter() - began
        images += count
    seconds = time.perf_counter() - began
    return {
        "images": images,
        "seconds": seconds,
        "first": first,
        "cpu": _cpu_seconds() - cpu,
        "peak_mb": sum(_peak_kib(pid) for pid in _tree()) / 1024,
    }


def _tree() -> list[int]:
    """This process and its descendants."""
    found = [os.getpid()]
    for pid in found:
        for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found.extend(int(child) for child in task.read_text().split())
            except OSError:  # it ended in between
                continue
    return found


def _cpu_seconds() -> float:
    """User and system time of this process, its living descendants and those that it has waited
    for."""
    ticks = 0
    for pid in _tree():
        try:
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended in between
            continue
        ticks += sum(int(fields[at]) for at in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


def _peak_kib(pid: int) -> int:
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended in between
        return 0
    return next(
        (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0
    )


def _compare(results: list[Result]) -> None:
    """Fill in each row's share of the decoder's speed, round by round."""
    decoding = next(
        (result for result in results if result.name == "decode_only" and result.rounds), None
    )
    for result in results:
        if decoding is not None and result.rounds and result is not decoding:
            shares = [one / wall for one, wall in zip(result.rounds, decoding.rounds)]
            result.of_decoding = round(statistics.median(shares), 3)


def _table(results: list[Result], config: BenchConfig) -> str:
    ours = next((result for result in results if result.kind == "ours" and result.rounds), None)
    lines = [
        machine(),
        f"{'row':18}{'images/s':>10}{'slowest-fastest':>18}{'CPU ms':>9}{'peak MB':>9}{'decode':>8}",
    ]
    lines[1] += f"{'ratio':>8}  parity"
    for result in results:
        if result.images_per_s is None:
            lines.append(f"{result.name:18}{'-':>10}  {result.error}")
            continue
        spread = f"{result.spread[0]:.0f}-{result.spread[1]:.0f}"
        share = f"{result.of_decoding:.0%}" if result.of_decoding is not None else "-"
        ratio = "-"
        if ours is not None and result is not ours:
            ratio = f"{statistics.median(a / b for a, b in zip(ours.rounds, result.rounds)):.2f}x"
        lines.append(
            f"{result.name:18}{result.images_per_s:>10.0f}{spread:>18}{result.cpu_ms_per_image:>9.2f}"
            f"{result.peak_mb:>9.0f}{share:>8}{ratio:>8}  {result.parity}"
        )
    lines.append(
        "decode: images/s over decode_only's in the same round; ratio: our first row over this one, likewise"
    )
    lines.extend(_meaning(results, ours, config))
    return "\n".join(lines)


def _meaning(results: list[Result], ours: Result | None, config: BenchConfig) -> list[str]:
    """What the figures mean for the user, in sentences."""
    if ours is None or ours.cpu_ms_per_image is None:
        return []
    lines = []
    if ours.of_decoding is not None:
        decoding = next(result for result in results if result.name == "decode_only")
        rest = ours.cpu_ms_per_image - (decoding.cpu_ms_per_image or 0)
        bound = "decoding" if ours.of_decoding > 0.5 else "augmentation"
        lines.append(
            f"{ours.name} is bound by {bound}: of {ours.cpu_ms_per_image:.2f} CPU-ms an image, decoding alone takes "
            f"{decoding.cpu_ms_per_image:.2f}, everything else {rest:.2f}"
        )
    cached = next(
        (result for result in results if result.name == "cached_batch" and result.images_per_s),
        None,
    )
    if cached is not None and cached.images_per_s:
        lines.append(
            f"a loader that cost nothing would hand over {cached.images_per_s:.0f} images/s (the same batch)"
        )
    cores = config.gpu_images_per_s * ours.cpu_ms_per_image / 1000
    lines.append(
        f"a GPU that trains {config.gpu_images_per_s:.0f} images/s (--gpu-images-per-s) wants {cores:.1f} such cores"
    )
    return lines


def _write_json(path: pathlib.Path, results: list[Result]) -> None:
    write_json(path, [dataclasses.asdict(result) for result in results])
    print(f"{path}: {len(results)} rows", file=sys.stderr)
