"""`loaders/` and `kernels/` copied into another package, sharing one cache with the original."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from maskco_fast.kernels.compiler.cache import cache_folder
from maskco_fast.kernels.compiler.jit import source_stamp
from tests.support.images import encode, picture

ROOT = pathlib.Path(__file__).resolve().parents[1]

READ_A_BATCH = """
import importlib, sys

def read_a_batch(package):
    loaders = importlib.import_module(f"{package}.loaders")
    render = importlib.import_module(f"{package}.kernels.render.image")
    importlib.import_module(f"{package}.loaders.backends.native")

    # The reference loader calls the compiled index and plan. The native loader's kernels take much
    # longer to compile; the smallest of them makes a named tuple, whose class the cached code
    # names.
    views = loaders.ViewConfig(views=(loaders.View(),), size=32)
    options = dict(views=views, backend="reference", index_folder=f"{index}-{package}", threads=1)
    with loaders.make_loader(images, 2, **options) as loader:
        print(next(iter(loader)).views[0].double().sum().item())
    assert type(render.make_scratch(32, 64, False)) is render.Scratch
    sys.stderr.write(f"end of {package}\\n")

images, index, *packages = sys.argv[1:]
for package in packages:
    read_a_batch(package)
"""


@pytest.fixture
def read_a_batch(tmp_path):
    """A function that reads one batch with each package's loader in a fresh process, one after the
    other: (sums, logs), each by package.

    All processes share one cache, empty at first. `mycode` is a package made of copies of the two
    folders.
    """
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):
        data = encode(picture(40, 50, seed=number), "png")
        (images / f"{number}.png").write_bytes(data)
    code = tmp_path / "code"
    for folder in ("loaders", "kernels"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, code / "mycode" / folder, ignore=ignore)
    (code / "mycode" / "__init__.py").touch()

    def read(*packages):
        arguments = [str(images), str(tmp_path / "index"), *packages]
        environment = {
            **os.environ,
            "MASKCO_FAST_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(code) if "mycode" in packages else "",
        }
        ended = subprocess.run(
            [sys.executable, "-c", READ_A_BATCH, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        logs = re.split("end of .*\n", ended.stderr)
        return ended.stdout.split(), logs[:-1]

    return read


def store_compiled_code(cache):
    """Save compiling a second time: put what other tests have compiled for `maskco_fast` into the
    folder that it looks in, unless that folder is already in use."""
    own, shared = cache / "numba" / source_stamp(), cache_folder("numba") / source_stamp()
    if own.exists():
        return
    own.mkdir(parents=True)
    for path in shared.glob("*.nb[ic]"):
        with contextlib.suppress(FileNotFoundError):  # replaced by a test that runs beside this one
            shutil.copy(path, own)


def test_a_copy_in_another_package_shares_the_cache_directory(read_a_batch, tmp_path):
    """Each package starts after the other has stored machine code, and loads only its own."""
    (first,), (log,) = read_a_batch("mycode")
    assert "compiled plan_rows" in log
    assert "compiled make_scratch" in log
    store_compiled_code(tmp_path / "cache")
    sums, (_, log) = read_a_batch("maskco_fast", "mycode")
    assert sums == [first, first]
    assert "compil" not in log
