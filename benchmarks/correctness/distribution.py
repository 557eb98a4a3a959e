"""The wheel and the sdist: built, checked, installed in an empty environment and used.

    python -m benchmarks.correctness.distribution [--offline]

Builds the sdist from a copy of the sources and the wheel from the sdist, in this environment, which
needs setuptools 77 or newer; checks both with `twine check --strict`; installs the wheel in a fresh
environment with its dependencies from pip's index (gigabytes with CUDA's torch), and runs
`maskco-fast` there in an empty folder: the version, an index, two training steps.
With `--offline` the dependencies are those of this environment. Exit code 1 at the first failure.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile

import tyro

from maskco_fast import __version__
from maskco_fast.demo.shards import demo_shards

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "maskco_fast", "loaders", "kernels")
"""What a distribution is built from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Build, check, install and use the package."""

    offline: bool = False
    """Use this environment's packages as dependencies, in place of pip's index."""
    use: bool = True
    """Install and use the wheel; without it, only build and check."""


@dataclasses.dataclass(frozen=True)
class Distribution:
    """The two files that an index takes."""

    sdist: pathlib.Path
    wheel: pathlib.Path


def run(*command: str | os.PathLike[str], cwd: pathlib.Path) -> str:
    """Run a command; its stdout. RuntimeError with all its output where it fails."""
    ended = subprocess.run(
        [os.fspath(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{words} failed:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def build(folder: pathlib.Path) -> Distribution:
    """Build the sdist from a copy of the sources, and the wheel from the sdist, in `folder`."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    made = folder / "dist"
    made.mkdir()
    hook = "import sys, setuptools.build_meta as backend; backend.build_{}(sys.argv[1])"
    run(sys.executable, "-c", hook.format("sdist"), made, cwd=source)
    (sdist,) = made.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-c", hook.format("wheel"), made, cwd=unpacked)
    (wheel,) = made.glob("*.whl")
    return Distribution(sdist, wheel)


def modules(distribution: Distribution) -> tuple[set[str], set[str]]:
    """The Python files in the sdist, by their place in the repository, and in the wheel, by theirs
    when installed."""
    with tarfile.open(distribution.sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(distribution.wheel) as wheel:
        return (
            {name for name in inside if name.endswith(".py")},
            {name for name in wheel.namelist() if name.endswith(".py")},
        )


def check(distribution: Distribution) -> None:
    """Run `twine check`: that an index takes the metadata and renders the README."""
    files = (distribution.sdist, distribution.wheel)
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=ROOT)


def install(wheel: pathlib.Path, folder: pathlib.Path, *, offline: bool) -> pathlib.Path:
    """Make an environment in `folder` and install the wheel; returns the environment's `bin`."""
    venv.create(folder, with_pip=True)
    programs = folder / "bin"
    pip = (programs / "python", "-m", "pip", "install", "--quiet")
    run(*pip, *(("--no-deps", "--no-index") if offline else ()), wheel, cwd=folder)
    if offline:
        # A .pth file puts the packages of this environment behind those of the new one.
        (packages,) = folder.glob("lib/python*/site-packages")
        own = [path for path in sys.path if path.endswith("site-packages")]
        text = "\n".join([*own, sysconfig.get_path("purelib")])
        (packages / "dependencies.pth").write_text(text + "\n", encoding="utf-8")
    return programs


def use(programs: pathlib.Path, folder: pathlib.Path) -> None:
    """Run the installed command in the empty `folder`; AssertionError at a surprise."""
    command = programs / "maskco-fast"
    place = run(
        programs / "python", "-c", "import maskco_fast; print(maskco_fast.__file__)", cwd=folder
    )
    assert place.startswith(str(programs.parent)), f"imported from {place}"
    assert run(command, "--version", cwd=folder) == f"maskco-fast {__version__}\n"
    (shard,) = demo_shards(folder / "images", samples=16, shards=1, size=(64, 96))
    assert "16" in run(command, "index", "--shards", shard, cwd=folder)
    small = ("--batch-size", "8", "--model.group-size", "8", "--model.view-size", "32")
    steps = ("--max-steps", "2", "--device", "cpu", "--loader", "native", "--shards", shard)
    to = ("--recipe", "demo", "--run-dir", folder / "run")
    run(command, "train", *to, *small, *steps, cwd=folder)
    assert (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 2


def main(options: Options) -> int:
    """Build, check, install and use; returns the exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        distribution = build(folder)
        sources, installed = modules(distribution)
        print(f"{distribution.sdist.name}: {len(sources)} modules")
        print(f"{distribution.wheel.name}: {len(installed)} modules")
        check(distribution)
        print("twine check: passed")
        if options.use:
            programs = install(distribution.wheel, folder / "environment", offline=options.offline)
            empty = folder / "empty"
            empty.mkdir()
            use(programs, empty)
            print("installed in an empty environment and used")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
