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
native = importlib.import_module(f"{package}.loaders.backends.native")
dataset = importlib.import_module(f"{package}.loaders.shards.open_dataset")

# A device that is no CPU: the native loader stops at the seam, uint8 views without augmentation,
# whose kernels compile in a third of the time. The cached code still names the package's classes.
views = loaders.ViewConfig(views=(loaders.View(),), size=32)
config = loaders.LoaderConfig(batch_size=2, views=views, device="meta", threads=1)
with native.NativeLoader(dataset.open_dataset(images, index_folder=index), config) as loader:
    rendered = next(loader._run(loader._requests(rank=0, world_size=1, batches=1)))
    print(rendered.memory.tolist())
"""


@pytest.fixture
def read_a_batch(tmp_path):
    """A function that reads one batch with a package's native loader in a fresh process: (pixels,
    log). All processes share one cache, empty at first.

    `mycode`, a package made of copies of the two folders, is importable only in its own processes,
    as a user's project is.
    """
    images = tmp_path / "images"
    images.mkdir()
    for number in range(2):  # PNG, because the JPEG decoder takes long to compile
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
    assert "compiled resize_views" in log
    store_compiled_code(tmp_path / "cache")
    assert read_a_batch("maskco_fast")[0] == first
    for package in ("mycode", "maskco_fast"):
        again, log = read_a_batch(package)
        assert again == first
        assert "compil" not in log
