"""Every file of a folder through `index`, `views`, `beton` and an epoch of each loader.

    python -m benchmarks.correctness.fault_files data/faults

Tar files are shards as they are; a .npz is tried as the index file of a sound shard; any other file
is packed with a sound image. Prints a Markdown table, a row a file: the images that tarfile
finds, those used and those named, exit codes and peak memory. The exit code is 1 where

- a command ends by a signal, hangs, lets an exception escape, or fails without an error in words,
- an image is neither used nor named, or loaders, or the index and a loader, differ,
- a file takes more than `--max-mb`.

Files run in child processes, so that a crash ends one file. The child is started again after it.
"""

import collections
import contextlib
import faulthandler
import io
import json
import multiprocessing
import pathlib
import re
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import tyro

from benchmarks.correctness.fuzz import seeds, targets
from benchmarks.correctness.fuzz.__main__ import describe, end_of
from maskco_fast import cli
from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import open_dataset
from maskco_fast.loaders.system.text import printable

FILES_PER_PROCESS = 100
SOUND = 1
"""Images beside one that is tried."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Every file of a folder through the commands and the loaders."""

    folder: tyro.conf.Positional[pathlib.Path]
    """The folder of the files, which may lie in folders of it."""
    max_mb: int = 1500
    """Growth of the process by one file that is a fault, MB."""
    hang_s: float = 600.0
    """Seconds for a file after which it hangs."""


@dataclass
class Row:
    """What became of a file."""

    name: str
    images: int | None = None
    """Images that a referee finds; None where tarfile cannot read the shard."""
    used: int = 0
    named: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)
    """Exit codes by command."""
    loaders: int = 0
    """Loaders whose epoch agrees with the reference's, and the reference."""
    peak_mb: int = 0
    """Growth of the process while the file was tried."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def _shard_of(file: pathlib.Path, folder: pathlib.Path) -> str:
    """The shard to try a file with; of an index file, a sound shard whose index it replaces."""
    if ".tar" in file.suffixes:
        return str(file)
    images = seeds.jpegs()
    members = {f"{n}.jpg": images[n] for n in range(SOUND)}
    if file.suffix != ".npz":
        members["odd.jpg" if file.suffix == ".bin" else f"odd{file.suffix}"] = file.read_bytes()
    shard = folder / f"{file.stem}.tar"
    shard.write_bytes(seeds.tar(members))
    if file.suffix == ".npz":
        open_dataset(str(shard), index_folder=folder / "index")
        (index,) = (folder / "index").glob("*.npz")
        index.write_bytes(file.read_bytes())
    return str(shard)


def _command(row: Row, arguments: Sequence[str]) -> str:
    """Run a command, note its exit code and what is wrong with it, and return its output."""
    name = arguments[0]
    printed, errors = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
            row.codes[name] = cli.main(arguments)
    except Exception as error:
        row.codes[name] = -1
        row.problems.append(f"{name}: {describe(error)}")
        return ""
    if row.codes[name] not in (0, 1):
        row.problems.append(f"{name}: exit code {row.codes[name]}")
    if row.codes[name] == 1 and "error: " not in errors.getvalue():
        row.problems.append(f"{name}: exit code 1 without an error")
    return printed.getvalue()


def _epochs(row: Row, shard: str, index: pathlib.Path) -> None:
    """An epoch of each loader: counts, reasons, and where they differ from one another."""
    try:
        epochs = targets.epochs(shard, index)
    except Exception as error:
        row.problems.append(f"loaders: {describe(error)}")
        return
    truth = epochs["reference"]
    row.used, row.named = truth.used, len(truth.quarantine)
    reasons = collections.Counter(entry.reason for entry in truth.quarantine)
    row.reasons = dict(reasons.most_common())
    row.problems += targets.differences(epochs)
    for name, epoch in epochs.items():
        if epoch.used + len(epoch.quarantine) != row.used + row.named:
            row.problems.append(f"{name} names other images than the reference")
    names_the_rest = any(not entry.key for entry in truth.quarantine)
    if row.used + row.named < max(row.images or 0, 1) and not names_the_rest:
        row.problems.append("an image is neither used nor named")
    row.loaders = len(epochs) - sum(" the reference" in problem for problem in row.problems)


def try_file(file: pathlib.Path, name: str) -> Row:
    """The row of a file."""
    row = Row(name)
    began = time.monotonic()
    before = _reset_peak()
    with tempfile.TemporaryDirectory(prefix="fault-") as scratch:
        folder = pathlib.Path(scratch)
        shard = _shard_of(file, folder)
        row.images = targets.images_by_tarfile(pathlib.Path(shard).read_bytes())
        index = folder / "index"
        _epochs(row, shard, index)
        shards, kept = ("--shards", shard), ("--index-folder", str(index))
        text = _command(row, ["index", *shards, *kept, "--json"])
        facts = json.loads(text) if text else None
        if facts and facts["samples"] + facts["quarantine"]["quarantined"] != row.used + row.named:
            row.problems.append("index and loaders differ in what they use and name")
        picture = ("--count", str(SOUND + 1), "--out", str(folder / "views.png"))
        _command(row, ["views", *shards, *kept, *picture])
        text = _command(row, ["beton", *shards, *kept, "--out", str(folder / "shard.beton")])
        counts = re.search(r"beton: (\d+) samples, .*; (\d+) left out", text)
        if counts and int(counts[1]) + int(counts[2]) != row.used + row.named:
            row.problems.append("beton and loaders differ in what they use and name")
    row.peak_mb = max(_peak_mb() - before, 0)
    row.seconds = time.monotonic() - began
    return row


def _reset_peak() -> int:
    """Begin a new measurement of `_peak_mb`, where the system can; returns the memory in use."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _peak_mb()


def _peak_mb() -> int:
    """The largest resident memory since `_reset_peak`, else of the process's life, MB."""
    with contextlib.suppress(OSError):
        status = pathlib.Path("/proc/self/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(found[1]) >> 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _child(files: Sequence[tuple[pathlib.Path, str]], answer: Connection) -> None:
    faulthandler.disable()  # a crash is a row of the table
    warnings.simplefilter("ignore")
    try:
        with tempfile.NamedTemporaryFile(suffix=".jpg") as sound:
            sound.write(seeds.jpegs()[0])
            sound.flush()
            # What is imported and compiled once counts for no file.
            try_file(pathlib.Path(sound.name), "")
        for file, name in files:
            answer.send(try_file(file, name))
    finally:
        shutil.rmtree(targets.scratch_folder(), ignore_errors=True)


def in_children(files: Sequence[tuple[pathlib.Path, str]], options: Options) -> Iterator[Row]:
    """The rows of all files; a crash or a hang is one file's and does not end the others."""
    fork = multiprocessing.get_context("fork")
    while files:
        part = files[:FILES_PER_PROCESS]
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_child, args=(part, theirs))
        process.start()
        theirs.close()
        for _, name in part:
            files = files[1:]
            if not ours.poll(options.hang_s):
                process.kill()
                yield Row(name, problems=["hangs"])
                break
            try:
                row = ours.recv()
            except EOFError:  # the process has ended without an answer
                process.join()
                yield Row(name, problems=[end_of(process.exitcode or 0)])
                break
            if row.peak_mb > options.max_mb:
                row.problems.append(f"takes {row.peak_mb} MB")
            yield row
        process.join()


HEADER = "| file | images | used | named | reasons | index / views / beton | epochs | MB | faults |"


def line(row: Row) -> str:
    """The row in Markdown."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in row.reasons.items())
    codes = " / ".join(str(row.codes.get(name, "")) for name in ("index", "views", "beton"))
    cells = (
        printable(row.name),
        "" if row.images is None else row.images,
        *(row.used, row.named, reasons, codes, row.loaders, row.peak_mb),
        "; ".join(row.problems),
    )
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def totals(rows: Sequence[Row]) -> str:
    """Sums over all rows, in a few lines."""
    codes = collections.Counter(
        f"{name} {code}" for row in rows for name, code in row.codes.items()
    )
    largest = max(rows, key=lambda row: row.peak_mb)
    slowest = max(rows, key=lambda row: row.seconds)
    refereed = [row for row in rows if row.images is not None]
    lines = [
        f"{len(rows)} files, {sum(bool(row.problems) for row in rows)} with a fault",
        f"{sum(row.used for row in rows)} images used, {sum(row.named for row in rows)} named; "
        f"tarfile finds {sum(row.images or 0 for row in refereed)} in {len(refereed)} files, of "
        f"which {sum(row.used + row.named for row in refereed)} are used or named",
        "exit codes: " + ", ".join(f"{name}: {count}" for name, count in sorted(codes.items())),
        f"peak memory: {largest.peak_mb} MB for {printable(largest.name)}; "
        f"longest: {slowest.seconds:.1f} s for {printable(slowest.name)}",
    ]
    return "\n".join(lines)


def main(options: Options) -> int:
    """Try the files and print the table; returns 1 where there is a fault."""
    files = sorted(path for path in options.folder.rglob("*") if path.is_file())
    if not files:
        raise InvalidInput(f"`folder` must hold files, and {options.folder} has none.")
    print(f"{HEADER}\n{'|---' * (HEADER.count('|') - 1)}|")
    rows = []
    for row in in_children(
        [(file, str(file.relative_to(options.folder))) for file in files], options
    ):
        print(line(row), flush=True)
        rows.append(row)
    print(f"\n{totals(rows)}")
    return int(any(row.problems for row in rows))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
