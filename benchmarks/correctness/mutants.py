"""Seeded faults: each changes one line of the product, and a named test must notice.

    python -m benchmarks.correctness.mutants            # all; minutes, since kernels are compiled
    python -m benchmarks.correctness.mutants --only order

Every mutant is made in a copy of the repository, so the working tree stays as it is. A mutant that
survives (its tests pass) is printed with the tests that should have failed, and the exit code is 1.
"""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass

import tyro

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPIED = ("kernels", "loaders", "maskco_fast", "benchmarks", "tests", "pyproject.toml", "README.md")


@dataclass(frozen=True)
class Mutant:
    """One fault: `old` stands exactly once in `file` and becomes `new`; `tests` must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


PLAN, ORDER = "kernels/plan.py", "loaders/order.py"
QUARANTINE, CONTRAST = "loaders/quarantine.py", "maskco_fast/methods/region_contrast.py"
CHECKPOINT, TRAINER = "maskco_fast/training/checkpoint.py", "maskco_fast/training/trainer.py"
WRITER, GATE = "maskco_fast/training/checkpoint_writer.py", "maskco_fast/bench/parity.py"

TEST_PLAN = ("tests/kernels/test_plan.py",)
TEST_ORDER = ("tests/loaders/test_order.py",)
TEST_QUARANTINE = ("tests/loaders/test_quarantine.py",)
TEST_CONTRAST = ("tests/maskco_fast/methods/test_region_contrast.py",)
TEST_CHECKPOINT = ("tests/maskco_fast/training/test_checkpoint.py",)
TEST_WRITER = ("tests/maskco_fast/training/test_checkpoint_writer.py",)
TEST_TRAINER = ("tests/maskco_fast/training/test_trainer.py",)
TEST_GATE = ("tests/maskco_fast/bench/test_parity.py",)

MUTANTS = (
    Mutant(
        "plan: the overlap must hold on one axis only",
        PLAN,
        "x2 - x1 >= min_overlap and y2 - y1 >= min_overlap",
        "x2 - x1 >= min_overlap or y2 - y1 >= min_overlap",
        TEST_PLAN,
    ),
    Mutant(
        "plan: the query's flip is not undone in the masked box",
        PLAN,
        "    if query_flip:\n        x1, x2",
        "    if False:\n        x1, x2",
        TEST_PLAN,
    ),
    Mutant(
        "plan: every epoch draws the same",
        PLAN,
        "_mix(seed + _GOLDEN) + epoch + _GOLDEN",
        "_mix(seed + _GOLDEN) + _GOLDEN",
        TEST_PLAN,
    ),
    Mutant(
        "plan: negatives may overlap the positive",
        PLAN,
        "nx1, ny1, nx2, ny2) < parameters[_MAX_NEGATIVE_IOU]",
        "nx1, ny1, nx2, ny2) < 1.0 + parameters[_MAX_NEGATIVE_IOU]",
        TEST_PLAN,
    ),
    Mutant(
        "plan: the mask may cover the whole query view",
        PLAN,
        "<= parameters[_MAX_MASK_SHARE] * size * size",
        "<= size * size",
        TEST_PLAN,
    ),
    Mutant(
        "plan: crops never reach the last row",
        PLAN,
        "_integer_below(stream, height - h + 1)",
        "_integer_below(stream, max(height - h, 1))",
        TEST_PLAN,
    ),
    Mutant(
        "order: shards are never shuffled",
        ORDER,
        'np.argsort(_keys(self._shards, seed, epoch, _SHARDS), kind="stable")',
        "self._shards",
        TEST_ORDER,
    ),
    Mutant(
        "order: samples of a block are never shuffled",
        ORDER,
        'samples[np.argsort(keys, kind="stable")]',
        "samples",
        TEST_ORDER,
    ),
    Mutant(
        "order: every epoch has the same order",
        ORDER,
        "start + np.uint64(epoch & (2**64 - 1)) + _GOLDEN",
        "start + _GOLDEN",
        TEST_ORDER,
    ),
    Mutant(
        "order: ranks share samples",
        ORDER,
        "(batch * world_size + rank) * batch_size",
        "(batch * world_size + rank // 2) * batch_size",
        TEST_ORDER,
    ),
    Mutant(
        "quarantine: the bound is doubled",
        QUARANTINE,
        "failed > self.max_share * self.tried",
        "failed > 2 * self.max_share * self.tried",
        TEST_QUARANTINE,
    ),
    Mutant(
        "quarantine: the bound applies one failure late",
        QUARANTINE,
        "failed >= self.MIN_FAILURES",
        "failed > self.MIN_FAILURES",
        TEST_QUARANTINE,
    ),
    Mutant(
        "quarantine: a sample that fails again counts again",
        QUARANTINE,
        "if index in self._failed:\n                return",
        "if False:\n                return",
        TEST_QUARANTINE,
    ),
    Mutant(
        "contrast: a tie counts as a hit",
        CONTRAST,
        "positive_N1 > negative_NM",
        "positive_N1 >= negative_NM",
        TEST_CONTRAST,
    ),
    Mutant(
        "contrast: an image's own negatives take part",
        CONTRAST,
        "-torch.inf",
        "0.0",
        TEST_CONTRAST,
    ),
    Mutant(
        "contrast: the temperature multiplies",
        CONTRAST,
        "/ temperature",
        "* temperature",
        TEST_CONTRAST,
    ),
    Mutant(
        "contrast: keys are not normalised",
        CONTRAST,
        "functional.normalize(keys_NKD.to(dtype), dim=-1)",
        "keys_NKD.to(dtype)",
        TEST_CONTRAST,
    ),
    Mutant(
        "checkpoint: the checksum is not compared",
        CHECKPOINT,
        "if found != expected:",
        "if False:",
        TEST_CHECKPOINT,
    ),
    Mutant(
        "checkpoint: the oldest is loaded",
        CHECKPOINT,
        "for path in reversed(paths):",
        "for path in paths:",
        TEST_CHECKPOINT,
    ),
    Mutant(
        "checkpoint: one more is kept",
        CHECKPOINT,
        "len(others) + 1 - keep",
        "len(others) - keep",
        TEST_CHECKPOINT,
    ),
    Mutant(
        "checkpoint: written before its losses were looked at",
        TRAINER,
        "        self._read_scalars(output)\n        if self.world.size > 1:",
        "        if self.world.size > 1:",
        TEST_TRAINER,
    ),
    Mutant(
        "checkpoint: the optimizer's state is not restored",
        TRAINER,
        'self.optimizer.load_state_dict(state["optimizer"])',
        "pass",
        TEST_TRAINER,
    ),
    Mutant(
        "checkpoint: the metrics are not written first",
        WRITER,
        "        before_write()\n",
        "",
        TEST_WRITER,
    ),
    Mutant(
        "gate: the mean is not limited",
        GATE,
        "self.mean <= limit.mean and ",
        "",
        TEST_GATE,
    ),
    Mutant(
        "gate: the worst value is not limited",
        GATE,
        "self.worst <= limit.worst and ",
        "",
        TEST_GATE,
    ),
    Mutant(
        "gate: far values are not limited",
        GATE,
        " and self.far <= limit.far",
        "",
        TEST_GATE,
    ),
    Mutant(
        "gate: boxes are not compared",
        GATE,
        '"target", "masked_box", "key_boxes"',
        '"target"',
        TEST_GATE,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make each seeded fault and see that its tests fail."""

    only: str = ""
    """Only mutants whose name contains this text."""
    jobs: int = 1
    """Mutants tried at the same time."""


def apply(mutant: Mutant, text: str) -> str:
    """`text` with the fault. ValueError where `old` does not stand in it exactly once."""
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(
            f"{mutant.name}: {mutant.old!r} must stand once in {mutant.file}, found {count}"
        )
    return text.replace(mutant.old, mutant.new)


def copy_repository(folder: pathlib.Path) -> None:
    """Copy the sources to `folder` so that Python imports the copy, not the installed package."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    for name in ("loaders", "kernels"):
        (folder / "maskco_fast" / name).symlink_to(folder / name)


def passes(tests: tuple[str, ...], mutant: Mutant | None = None) -> bool:
    """Whether `tests` pass in a copy of the repository, with the mutant's fault if one is given."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = pathlib.Path(name)
        copy_repository(folder)
        if mutant is not None:
            file = folder / mutant.file
            file.write_text(apply(mutant, file.read_text(encoding="utf-8")), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", "0"]
        done = subprocess.run(
            [*command, *tests],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode not in (0, 1):  # 1: tests failed; anything else: they did not run
        raise RuntimeError(f"pytest ended with {done.returncode} for {tests}\n{done.stdout}")
    return done.returncode == 0


def main(options: Options) -> int:
    """Try the mutants and print a line for each; returns 1 where one survives."""
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    suites = sorted({mutant.tests for mutant in chosen})
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        # A test that fails without a fault would kill every mutant.
        red = [tests for tests, green in zip(suites, pool.map(passes, suites)) if not green]
        if red:
            print(f"these tests fail without a fault: {red}")
            return 1
        alive = []
        results = pool.map(lambda mutant: passes(mutant.tests, mutant), chosen)
        for mutant, survived in zip(chosen, results):
            print(f"{'SURVIVES' if survived else 'killed':9} {mutant.name}", flush=True)
            if survived:
                alive.append(mutant)
                print(f"          no failure in {' '.join(mutant.tests)}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} killed")
    return int(bool(alive))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
