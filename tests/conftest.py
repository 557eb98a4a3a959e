"""Fixtures of all tests: generated shards, real images, backends, a cache folder."""

import functools
import os
import pathlib
import signal
from collections.abc import Callable, Iterator

# Workers run a test per core: more threads each would wait for one another, in OpenMP by spinning.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from maskco_fast.commands.doctor import LOADER_NEEDS
from tests.support.images import skip_without_packages, write_shards
from tests.support.s3 import s3_api  # noqa: F401 a fixture, for every test


@pytest.fixture(autouse=True, scope="session")
def _own_index_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep shard indexes and demo data out of the user's cache folder; share its machine code."""
    from maskco_fast.kernels.compiler.cache import cache_folder

    numba = cache_folder("numba")
    root = tmp_path_factory.mktemp("cache")
    os.symlink(numba, root / "numba")
    os.environ["MASKCO_FAST_CACHE"] = str(root)
    cache_folder.cache_clear()


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Handle SIGINT as at a terminal: background jobs and some CI systems start with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real and hostile shards; tests that use it are skipped where it is absent."""
    root = pathlib.Path(__file__).resolve().parents[1]
    folder = pathlib.Path(os.environ.get("MASKCO_FAST_SHARED", root.parent / "shared")) / "data"
    if not (folder / "in1k-sample-0000.tar").exists():
        pytest.skip(
            "the shared shards (in1k-sample-*, hostile-*) are absent: set MASKCO_FAST_SHARED to "
            "the folder whose data/ holds them"
        )
    return folder


@pytest.fixture
def make_shards(tmp_path: pathlib.Path) -> Callable[..., list[str]]:
    """`write_shards` into the test's own folder."""

    return functools.partial(write_shards, tmp_path)


@pytest.fixture(params=sorted(LOADER_NEEDS))  # the names in LOADERS, which brings torch
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend in turn; those without their packages are skipped."""
    skip_without_packages(request.param)
    return request.param


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker more than CPUs: tests of servers and processes wait a third of their time."""
    from maskco_fast.loaders.system.cpus import usable_cpus

    return usable_cpus() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none; import torch only where there are any."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device; run `make gpu-check` on one"))
