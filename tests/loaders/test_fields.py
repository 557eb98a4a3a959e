"""Fields and names: other members of a sample, and where it lies, for every loader."""

import collections
import io
import itertools
import json
from typing import Any

import numpy as np
import pytest
import torch

from maskco_fast.loaders import RemoteConfig, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.device_stage import DeviceStage, InOrderStreams
from maskco_fast.loaders.fields import decode_field
from maskco_fast.loaders.loader import _without_left_out
from tests.support.images import encode, picture, write_shards, write_tar

FIELDS = ("txt", "json", "depth.bin", "cls")
SAMPLES = 8
LACKING, DAMAGED, UNDECODABLE = 2, 4, 6
"""Numbers of the sample without a caption, of that with damaged JSON, and of the bad image."""


def members(number: int) -> dict[str, bytes]:
    key = f"a/sample-{number}"
    data = encode(picture(24, 30, number), quality=90)
    if number == UNDECODABLE:
        table = data.index(b"\xff\xc4") + 5
        data = data[:table] + b"\xff" * 16 + data[table + 16 :]
    found = {
        f"{key}.txt": f"caption {number}: ünder".encode(),  # before its image
        f"{key}.jpg": data,
        f"{key}.JSON": b"{" if number == DAMAGED else json.dumps({"n": number}).encode(),
        f"{key}.depth.bin": bytes([number]),
        f"{key}.cls": b"7",
    }
    if number == LACKING:
        del found[f"{key}.txt"]
    return found


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    parts = itertools.chain.from_iterable(members(n).items() for n in range(SAMPLES))
    return str(write_tar(tmp_path_factory.mktemp("fields") / "shard.tar", dict(parts)))


def make(shards: Any, **options: Any) -> Any:
    settings = {"views": ViewConfig.evaluation(16), "threads": 1, "shuffle": False}
    return make_loader(shards, 4, **{**settings, "fields": FIELDS, "names": True, **options})


def check(batches, shard, *, replaced):
    """Each sample has its own values; the bad one has its substitute's, or is left out."""
    batches = list(batches)
    numbers = [index for batch in batches for index in batch.index.tolist()]
    instead = [UNDECODABLE + 1] if replaced else []
    assert numbers == [0, 1, 2, 3, 4, 5, *instead, 7]
    joined: dict[str, list[Any]] = collections.defaultdict(list)
    for batch in batches:
        assert list(batch.fields) == list(FIELDS)
        assert batch["txt"] is batch.fields["txt"]
        for field in FIELDS:
            joined[field] += batch[field]
        joined["names"] += batch.names
    captions = [None if n == LACKING else f"caption {n}: ünder" for n in numbers]
    assert joined["txt"] == captions
    assert joined["json"] == [None if n == DAMAGED else {"n": n} for n in numbers]
    assert joined["depth.bin"] == [bytes([n]) for n in numbers]
    assert joined["cls"] == [7] * len(numbers)
    assert joined["names"] == [(shard, f"a/sample-{n}") for n in numbers]


@pytest.mark.parametrize("drop_last", [True, False])
def test_every_loader_brings_them(backend, shard, drop_last):
    with make(shard, backend=backend, drop_last=drop_last) as loader:
        for _ in range(2):
            check(loader, shard, replaced=drop_last)
        found = {(entry.key, entry.found): entry.reason for entry in loader.quarantine.entries}
    assert found.keys() == {(f"a/sample-{UNDECODABLE}", "decode"), (f"a/sample-{DAMAGED}", "field")}
    assert found[f"a/sample-{DAMAGED}", "field"] == (
        "its .json member is damaged, so the field is None"
    )


def test_a_process_of_its_own_brings_them(shard):
    with make(shard, loader_process=True) as loader:
        check(loader, shard, replaced=True)
        assert {entry.found for entry in loader.quarantine.entries} == {"decode", "field"}


def test_the_device_stage_brings_them(shard):
    loader = make(shard, device="meta", drop_last=False, views=ViewConfig.evaluation(32))
    rendered = loader._run(loader._requests(0, 1, len(loader)))
    stage = DeviceStage(loader.dataset, loader.config, InOrderStreams(), torch.device("cpu"))
    made = list(stage.batches(_without_left_out(rendered, collections.deque())))
    check(made, shard, replaced=False)


def test_remote_shards_bring_them(shard, tmp_path):
    config = RemoteConfig(cache_folder=str(tmp_path / "cache"))
    url = f"pipe:cat {shard}"
    for _ in range(2):  # the second time by the stored index
        with make(url, remote=config, index_folder=tmp_path / "index") as loader:
            check(loader, url, replaced=True)


def test_a_stream_brings_them(shard):
    config = RemoteConfig(mode="stream", epoch_samples=8)
    with make(shard, remote=config) as loader:
        first, _ = loader
    assert first["txt"] == ["caption 0: ünder", "caption 1: ünder", None, "caption 3: ünder"]
    assert first["json"][3] == {"n": 3}
    assert first.names[1] == (shard, "a/sample-1")


def test_a_folder_brings_the_files_beside_its_images(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(encode(picture(24, 30, number)))
        if number:
            (tmp_path / f"{number}.txt").write_text(f"caption {number}")
    with make(tmp_path, fields="txt") as loader:
        (batch,) = loader
        assert batch["txt"] == [None, "caption 1", "caption 2", "caption 3"]
        assert batch.names[1] == (str(tmp_path), "1")
        (tmp_path / "0.txt").write_text("new")
        (batch,) = loader
        assert batch["txt"][0] == "new"


def test_without_the_options_nothing_is_read(shard, monkeypatch):
    with make(shard, fields=None, names=False) as loader:
        monkeypatch.setattr(loader.dataset, "read_fields", None)
        monkeypatch.setattr(loader, "_fetch_fields", None)
        batch = next(iter(loader))
    assert batch.names is None
    assert batch.fields is None


def test_values_by_suffix():
    stored = io.BytesIO()
    np.save(stored, np.arange(3))
    assert decode_field("npy", stored.getvalue()).tolist() == [0, 1, 2]
    assert decode_field("cls", b" -12\n") == -12
    assert decode_field("cls", b"n01440764") == "n01440764"
    assert decode_field("en.txt", b"\xef\xbb\xbfcaption") == "caption"
    assert decode_field("bin", b"\xff") == b"\xff"
    np.save(stored := io.BytesIO(), np.array([{}]), allow_pickle=True)
    for field, data in (("txt", b"\xff"), ("json", b"[" * 100_000), ("npy", stored.getvalue())):
        with pytest.raises(ValueError, match=rf"its \.{field} member is damaged"):
            decode_field(field, data)


def test_options_that_do_not_fit_are_refused(shard, tmp_path):
    for wrong in (("txt", ".TXT"), ("a/b",), (".",), (3,)):
        with pytest.raises(ValueError, match="`fields` must"):
            open_dataset(shard, fields=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be given to `open_dataset`"):
        make(open_dataset(shard, fields="txt"))
    from maskco_fast.loaders.shards.beton_writer import write_beton

    target = tmp_path / "a.beton"
    write_beton(open_dataset(write_shards(tmp_path, 1, 2, side=24)), target)
    with pytest.raises(ValueError, match=r"a \.beton file has no fields, got txt, json"):
        make(str(target))
