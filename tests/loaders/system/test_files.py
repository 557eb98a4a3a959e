"""Files written atomically."""

import os

import pytest

from maskco_fast.loaders.system.files import write_atomically


def test_the_file_appears_whole(tmp_path):
    path = tmp_path / "new folder" / "file"
    with write_atomically(path) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert os.listdir(path.parent) == ["file"]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError), write_atomically(path, "w") as file:  # noqa: PT012
        file.write("new")
        file.write(b"bytes")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    """Not the 0600 of a temporary file: other users may read a run folder."""
    (tmp_path / "plain").touch()
    with write_atomically(tmp_path / "file"):
        pass
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_content_is_synced_before_it_is_named(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(number: int) -> None:
        calls.append("sync")
        fsync(number)

    def note_replace(source: str, target: str) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    with write_atomically(tmp_path / "file") as file:
        file.write(b"x")
    assert calls == ["sync", "rename", "sync"]
