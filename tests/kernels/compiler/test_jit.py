"""The cache of machine code: its stamp, its log messages and its folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from maskco_fast.kernels.compiler import jit as jit_module
from maskco_fast.kernels.compiler.cache import _folder_of_this_process, cache_folder
from maskco_fast.kernels.compiler.jit import inline_jit, jit, source_stamp

SCRIPT = """
from maskco_fast.kernels.headers import find_ordinary_scan
import numpy as np
print(find_ordinary_scan(np.zeros(100, np.uint8)))
"""


def run(**environment):
    """Call a small kernel in a fresh process: (stdout, stderr)."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout, ended.stderr


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    first, told = run(MASKCO_FAST_CACHE=str(tmp_path))
    assert "compiling find_ordinary_scan for this CPU" in told
    assert "compiled find_ordinary_scan in" in told
    second, told = run(MASKCO_FAST_CACHE=str(tmp_path))
    assert told == ""
    assert first == second
    assert [folder.name for folder in (tmp_path / "numba").iterdir()] == [source_stamp()]


@pytest.fixture
def stamp(tmp_path, monkeypatch):
    """A function that computes the stamp of a copy of `kernels/` anew; changes to the copy and to
    `jit_module` are undone."""
    root = tmp_path / "kernels"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(pathlib.Path(jit_module.__file__).parents[1], root, ignore=ignore)
    monkeypatch.setattr(jit_module, "__file__", str(root / "compiler" / "jit.py"))
    return source_stamp.__wrapped__


def test_the_stamp_depends_on_sources_and_not_on_their_place(stamp):
    assert stamp() == source_stamp()


@pytest.mark.parametrize("file", ["plan.py", "jpeg/entropy.py", "augment/numba.py"])
def test_the_stamp_follows_every_source(stamp, tmp_path, file):
    """Sources in subfolders too; their text, and their names."""
    before = stamp()
    path = tmp_path / "kernels" / file
    source = path.read_text()
    path.write_text(source + "# changed\n")
    assert stamp() != before
    path.write_text(source)
    assert stamp() == before
    path.rename(path.with_name("zzz.py"))
    assert stamp() != before


def test_the_stamp_follows_versions_and_the_package(stamp, monkeypatch):
    before = stamp()
    monkeypatch.setattr(jit_module.numba, "__version__", "0.0")
    other_version = stamp()
    assert other_version != before
    monkeypatch.setattr(jit_module, "__package__", "mycode.kernels.compiler")
    assert stamp() not in (before, other_version)


def test_folders_that_cannot_be_written_are_passed_over(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.touch()  # a file in place of a folder: root can write into a read-only folder
    monkeypatch.setenv("MASKCO_FAST_CACHE", str(blocked))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    cache_folder.cache_clear()
    assert cache_folder("numba") == tmp_path / "home" / "maskco-fast" / "numba"
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(blocked))
    cache_folder.cache_clear()
    with pytest.raises(OSError, match="set MASKCO_FAST_CACHE"):
        cache_folder("numba")
    monkeypatch.undo()
    cache_folder.cache_clear()


@pytest.mark.parametrize("theirs", ["mode", "owner", "link"])
def test_a_folder_of_another_user_is_not_used(tmp_path, monkeypatch, theirs):
    """With an unwritable home: anyone may have made the folder in /tmp before."""
    (tmp_path / "file").touch()
    monkeypatch.delenv("MASKCO_FAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    root = tmp_path / f"maskco-fast-{os.getuid()}"
    cache_folder.cache_clear()
    assert cache_folder("numba") == root / "numba"
    assert root.stat().st_mode & 0o777 == 0o700
    if theirs == "mode":
        root.chmod(0o777)
    elif theirs == "owner":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        root.rename(tmp_path / "maskco-fast-12345")
    else:
        root.rename(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").chmod(0o777)
        root.symlink_to(tmp_path / "elsewhere")
    cache_folder.cache_clear()
    with pytest.warns(UserWarning, match="no cache directory of this user"):
        folder = cache_folder("numba")
    assert folder.parent.parent == tmp_path
    assert folder.parent.name not in (root.name, "maskco-fast-12345")
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.undo()
    cache_folder.cache_clear()
    _folder_of_this_process.cache_clear()


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_damaged_machine_code_is_made_anew_with_a_warning(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("MASKCO_FAST_CACHE", str(tmp_path))
    cache_folder.cache_clear()

    def double(x):
        return 2 * x

    assert jit()(double)(3) == 6
    files = [file for file in tmp_path.rglob("*.nb?") if file.is_file()]
    assert len(files) == 2
    for file in files:
        content = bytearray(file.read_bytes())
        if damage == "flipped":
            content[len(content) // 2] ^= 1
        elif damage == "cut":
            del content[len(content) // 2 :]
        else:
            content = bytearray(b"" if damage == "empty" else b"\x80\x04N.")
        file.write_bytes(content)
        with pytest.warns(UserWarning, match="is damaged and made anew"):
            assert jit()(double)(3) == 6
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert jit()(double)(3) == 6
    monkeypatch.undo()
    cache_folder.cache_clear()


def test_kernels_run_without_the_gil_and_divide_as_arrays_do():
    @inline_jit()
    def inverse(x):
        return 1.0 / x

    @jit()
    def total(values):
        result = 0.0
        for value in values:
            result += inverse(value)
        return result

    assert total.targetoptions["nogil"]  # type: ignore[attr-defined]
    assert total(np.array([1.0, 2.0])) == 1.5
    assert total(np.array([0.0])) == np.inf
