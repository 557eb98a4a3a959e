"""`loaders/` and `kernels/` copied into another package, sharing one cache with the original."""

import contextlib
import os
import pathlib
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

package, images, index = sys.argv[1:]
loaders = importlib.import_module(f"{package}.loaders")
render = importlib.import_module(f"{package}.kernels.render.image")
importlib.import_module(f"{package}.loaders.backends.native")

# The reference loader calls the compiled index and plan. The native loader's kernels take much
# longer to compile; the smallest of them makes a named tuple, whose class the cached code names.
views = loaders.ViewConfig(views=(loaders.View(),), size=32)
options = dict(views=views, backend="reference", index_folder=index, threads=1)
with loaders.make_loader(images, 2, **options) as loader:
    print(next(iter(loader)).views[0].double().sum().item())
assert type(render.make_scratch(32, 64, False)) is render.Scratch
"""


@pytest.fixture
def read_a_batch(tmp_path):
    """A function that reads one batch with a package's loader in a fresh process: (sum, log).

    All processes share one cache, empty at first.

    `mycode`, a package made of copies of the two folders, is importable only in its own processes,
    as a user's project is.
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

    def read(package):
        arguments = [package, str(images), str(tmp_path / f"index-of-{package}")]
        environment = {
            **os.environ,
            "MASKCO_FAST_CACHE": str(tmp_path / "cache"),
            "PYTHONPATH": str(code) if package == "mycode" else "",
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
        return ended.stdout, ended.stderr

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
    first, log = read_a_batch("mycode")
    assert "compiled plan_rows" in log
    assert "compiled make_scratch" in log
    store_compiled_code(tmp_path / "cache")
    assert read_a_batch("maskco_fast")[0] == first
    again, log = read_a_batch("mycode")
    assert again == first
    assert "compil" not in log
