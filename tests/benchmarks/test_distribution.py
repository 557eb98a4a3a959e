"""The sdist and the wheel: what is in them, and that an index would take them."""

import importlib.util
import pathlib

import pytest

from benchmarks.correctness import distribution

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> distribution.Distribution:
    pytest.importorskip("setuptools", minversion="77", reason="setuptools>=77 builds the package")
    return distribution.build(tmp_path_factory.mktemp("distribution"))


def test_the_sdist_holds_every_module_and_makes_the_whole_wheel(
    built: distribution.Distribution,
) -> None:
    sources, installed = distribution.modules(built)
    folders = ("maskco_fast", "loaders", "kernels")
    here = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sources == here
    assert len(installed) == len(here)


def test_an_index_would_take_both(built: distribution.Distribution) -> None:
    if importlib.util.find_spec("twine") is None:
        pytest.skip("pip install twine")
    distribution.check(built)


def test_a_failing_command_shows_what_it_wrote(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RuntimeError, match="failed:\nno such thing"):
        distribution.run("sh", "-c", "echo no such thing; exit 3", cwd=tmp_path)
