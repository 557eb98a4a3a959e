"""Labels: sources, class lists, refusals by name, indexes of their own, hostile members."""

import io
import json
import tarfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskco_fast.kernels.errors import InvalidInput
from maskco_fast.loaders import RemoteConfig, ViewConfig, make_loader, open_dataset
from maskco_fast.loaders.shards.beton import BetonDataset
from maskco_fast.loaders.shards.beton_encode import BetonOptions
from maskco_fast.loaders.shards.beton_writer import _Writer, write_beton
from maskco_fast.loaders.shards.labels import (
    MAX_CLASSES,
    MAX_JSON_BYTES,
    MAX_LABEL_BYTES,
    LabelSource,
    NoLabel,
    pack_labels,
)
from tests.support.images import encode, picture, write_tar

IMAGE = encode(picture(24, 24, 0))
WORDS = ["dog", "ant", "cat", "dog"]


@pytest.fixture
def labelled(tmp_path):
    """A function that writes a tar of images with these label members; returns its path."""

    def write(members, suffix="cls", name="s.tar", image=IMAGE):
        files = {}
        stem = name.partition(".")[0]
        for number, member in enumerate(members):
            files[f"{stem}{number}.jpg"] = image
            if member is not None:
                files[f"{stem}{number}.{suffix}"] = (
                    member if isinstance(member, bytes) else str(member).encode()
                )
        return str(write_tar(tmp_path / name, files))

    return write


def targets(dataset):
    return dataset.samples["target"].tolist()


def test_numbers_are_their_own_classes(labelled):
    dataset = open_dataset(labelled([3, 0, "5\n", " 3 "]), labels="cls")
    assert dataset.classes == ("0", "1", "2", "3", "4", "5")
    assert targets(dataset) == [3, 0, 5, 3]
    assert dataset.labels == "cls"
    # Without `labels` nothing is mapped, and what is no number has none.
    plain = open_dataset(labelled([3, "ant", "--5", "9" * 30, b"\xff", None], name="p.tar"))
    assert targets(plain) == [3, -1, -1, -1, -1, -1]
    assert plain.classes is None


def test_words_are_sorted_over_all_shards(labelled):
    shards = [labelled(WORDS, name="a.tar"), labelled(["bee", "ant"], name="b.tar")]
    dataset = open_dataset(shards, labels="cls")
    assert dataset.classes == ("ant", "bee", "cat", "dog")
    assert targets(dataset) == [3, 0, 2, 3, 1, 0]
    with make_loader(shards, 6, labels="cls", views=ViewConfig.npid(32), shuffle=False) as loader:
        (batch,) = loader
        assert loader.dataset.classes == dataset.classes
    assert batch.target.tolist() == [3, 0, 2, 3, 1, 0]
    assert batch.target.dtype == torch.int64


def test_a_given_class_list_keeps_its_order(labelled):
    shard = labelled(WORDS)
    dataset = open_dataset(shard, labels="cls", classes=["dog", "zebra", "cat", "ant"])
    assert dataset.classes == ("dog", "zebra", "cat", "ant")
    assert targets(dataset) == [0, 3, 2, 0]
    padded = open_dataset(labelled(["007", "3"], name="n.tar"), labels="cls", classes=["3", "7"])
    assert targets(padded) == [1, 0]


def test_a_label_outside_the_list_is_refused_by_name(labelled):
    shard = labelled(WORDS)
    with pytest.raises(
        InvalidInput,
        match=r"2 of 4 samples .* list of 2 classes \(ant, cat\), by labels='cls'\. The first is "
        r"'dog' of s0 in .*s\.tar; 1 such labels.* training as `classes`",
    ):
        open_dataset(shard, labels="cls", classes=("ant", "cat"))


def test_fields_of_json_members(labelled):
    facts = [{"a": {"b": "x"}, "n": 2, "yes": True}, {"a": {"b": "y"}, "n": "0", "yes": False}]
    shard = labelled([json.dumps(one) for one in facts], "json")
    assert open_dataset(shard, labels="json:a.b").classes == ("x", "y")
    numbers = open_dataset(shard, labels="json:n")
    assert numbers.classes == ("0", "1", "2")
    assert targets(numbers) == [2, 0]
    assert open_dataset(shard, labels="json:yes").classes == ("false", "true")


def test_folder_names_of_folders_and_archives(tmp_path):
    for name in ("b/1.jpg", "a/deep/2.jpg"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(IMAGE)
    shard = write_tar(tmp_path / "s.tar", {"./c/3.jpg": IMAGE, "a/4.jpg": IMAGE})
    dataset = open_dataset([tmp_path / "images", shard], labels="folder")
    assert dataset.classes == ("a", "b", "c")
    assert targets(dataset) == [0, 1, 2, 0]
    (tmp_path / "images" / "top.jpg").write_bytes(IMAGE)
    with pytest.raises(InvalidInput, match=r"1 of 3 samples .* top in .*images: it lies in no fol"):
        open_dataset(tmp_path / "images", labels="folder")
    with pytest.raises(InvalidInput, match=r"it has no \.cls member"):
        open_dataset(tmp_path / "images", labels="cls")


def test_samples_without_a_label_are_counted_and_the_first_is_named(labelled):
    shards = [labelled([1, 2], name="a.tar"), labelled([0, None, b"\xff", None], name="b.tar")]
    with pytest.raises(
        InvalidInput,
        match=r"3 of 6 samples have no label by labels='cls' \(2: it has no \.cls member; 1: its "
        r"\.cls member is not UTF-8\)\. The first is b1 in .*b\.tar: it has no \.cls member",
    ):
        open_dataset(shards, labels="cls")


def test_only_usable_samples_need_a_label(tmp_path):
    members = {"good.jpg": IMAGE, "good.cls": b"1", "bad.jpg": b"no image", "alone.cls": b"text"}
    dataset = open_dataset(write_tar(tmp_path / "s.tar", members), labels="cls")
    assert targets(dataset) == [1]
    assert dataset.classes == ("0", "1")


HOSTILE = [
    ("cls", b"x" * (MAX_LABEL_BYTES + 1), f"more than {MAX_LABEL_BYTES} bytes"),
    ("cls", b"  \n", "is empty"),
    ("cls", b"a\x1b[2J", "control characters"),
    ("cls", b"\xff\xfe", "not UTF-8"),
    ("json", b" " * (MAX_JSON_BYTES + 1), f"more than {MAX_JSON_BYTES} bytes"),
    ("json", b"[" * 200_000, "does not parse"),
    ("json", b"{", "does not parse"),
    ("json", b'{"f": %s}' % (b"9" * 5000), "does not parse"),
    ("json", b'{"f": %s}' % (b"9" * 2000), f"more than {MAX_LABEL_BYTES} bytes"),
    ("json", b'["f"]', "no field 'f'"),
    ("json", b'{"f": null}', "is null"),
    ("json", b'{"f": ["a", "b"]}', "is a list"),
    ("json", b'{"f": {"f": 1}}', "is an object"),
    ("json", b'{"f": 1.5}', "is a fraction"),
    ("json", b'{"f": NaN}', "is a fraction"),
    ("json", b'{"f": "\\ud800"}', "not Unicode text"),
    ("json", b'{"f": "\xff"}', "not UTF-8"),
]


@pytest.mark.parametrize(("kind", "member", "reason"), HOSTILE)
def test_hostile_members_are_bounded_and_named(labelled, kind, member, reason):
    option = "json:f" if kind == "json" else "cls"
    with pytest.raises(InvalidInput, match=rf"1 of 1 samples .*{reason}.* s0 in .*s\.tar"):
        open_dataset(labelled([member], kind), labels=option)


@given(data=st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
@settings(deadline=None)
def test_any_bytes_make_a_label_or_a_reason(data):
    for source in (LabelSource("cls"), LabelSource("json", "a.b")):
        label = source.read("key", lambda: data)
        if isinstance(label, str):
            assert label == label.strip()
            assert label.encode()


def test_a_label_that_the_shard_cuts_is_no_label(tmp_path, labelled):
    """Half of "17" would be another class."""
    path = labelled(["17"])
    with tarfile.open(path) as archive:
        end = archive.getmembers()[-1].offset_data
    with open(path, "r+b") as file:
        file.truncate(end + 1)
    with pytest.raises(InvalidInput, match="cut short"):
        open_dataset(path, labels="cls")


def test_names_that_are_not_utf8(tmp_path):
    path = tmp_path / "latin.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, data in (("für/a.jpg", IMAGE), ("für/b.jpg", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    dataset = open_dataset(path)
    assert dataset.shards[0].key(0) == r"f\xfcr/a"
    assert [entry.key for entry in dataset.bad] == [r"f\xfcr/b"]
    with pytest.raises(InvalidInput, match="not Unicode text"):
        open_dataset(path, labels="folder")


def test_class_lists_that_would_mislead_are_refused(labelled):
    with pytest.raises(InvalidInput, match=r"all numbers or all text, .*'1O' of m2 in .*m\.tar"):
        open_dataset(labelled(["1", "2", "1O"], name="m.tar"), labels="cls")
    mixed = open_dataset(labelled(["1", "x"], name="x.tar"), labels="cls", classes=["x", "1"])
    assert targets(mixed) == [1, 0]
    for number in (-1, MAX_CLASSES):
        with pytest.raises(
            InvalidInput, match=rf"\[0, {MAX_CLASSES - 1}\], got {number} of n.*0 in"
        ):
            open_dataset(labelled([number], name=f"n{number}.tar"), labels="cls")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "caption"}, "`labels` must be 'cls', 'json:FIELD'"),
        ({"labels": "json:"}, "got 'json:'"),
        ({"classes": ["a"]}, "`classes` needs `labels`"),
        ({"labels": "cls", "classes": "ant"}, "must be a sequence of class names"),
        ({"labels": "cls", "classes": [0, 1]}, "must be a sequence of class names"),
        ({"labels": "cls", "classes": []}, "at least one class"),
        ({"labels": "cls", "classes": ["a", "b", "a"]}, "has 'a' twice"),
    ],
)
def test_options_that_do_not_fit_are_refused(labelled, options, message):
    with pytest.raises(InvalidInput, match=message):
        make_loader(labelled([0]), 1, **options)


def test_an_open_dataset_has_its_own_labels(labelled):
    dataset = open_dataset(labelled(WORDS), labels="cls")
    with pytest.raises(InvalidInput, match="must be given to `open_dataset`"):
        make_loader(dataset, 2, labels="cls")


def test_each_source_has_an_index_of_its_own(labelled, tmp_path):
    """One folder of indexes serves every source, in any order, also when it is read again."""
    facts = json.dumps({"f": "ant", "g": "bee"})
    files = {"0.jpg": IMAGE, "0.cls": b"2", "0.json": facts.encode()}
    shard = write_tar(tmp_path / "s.tar", files)
    expected = {None: None, "cls": ("0", "1", "2"), "json:f": ("ant",), "json:g": ("bee",)}
    for _ in range(2):
        for labels, classes in expected.items():
            dataset = open_dataset(shard, labels=labels, index_folder=tmp_path / "index")
            assert dataset.classes == classes
            assert targets(dataset) == [2 if labels in (None, "cls") else 0]
    assert len(list((tmp_path / "index").glob("*.npz"))) == len(expected)


def test_packed_labels_repeat_no_text():
    missing = NoLabel("why")
    packed = pack_labels(LabelSource("cls"), ["b", "a", missing, "b", NoLabel("why")])
    assert (packed.names, packed.reasons) == (("b", "a"), ("why",))
    assert packed.codes.tolist() == [0, 1, -1, 0, -1]


def test_labels_and_classes_survive_a_beton(labelled, tmp_path):
    path = str(tmp_path / "all.beton")
    shards = [labelled(WORDS, name="a.tar"), labelled(["bee"], name="b.tar")]
    dataset = open_dataset(shards, labels="cls", classes=["dog", "cat", "bee", "ant", "emu"])
    write_beton(dataset, path)
    for labels in (None, "cls"):
        mine = open_dataset(path, labels=labels)
        assert (mine.labels, mine.classes) == ("cls", dataset.classes)
        assert targets(mine) == targets(dataset)
    other = open_dataset(path, labels="cls", classes=["ant", "bee", "cat", "dog"])
    assert targets(other) == [3, 0, 2, 3, 1]
    with pytest.raises(InvalidInput, match=r"'dog' of a0 in .*a\.tar"):
        open_dataset(path, labels="cls", classes=["ant", "bee", "cat"])
    with pytest.raises(InvalidInput, match=r"written with labels='cls'.*--labels folder"):
        open_dataset(path, labels="folder")


def test_several_betons_need_one_class_list(labelled, tmp_path):
    paths = []
    for name, words in (("a", WORDS), ("b", ["bee", "ant"])):
        paths.append(str(tmp_path / f"{name}.beton"))
        write_beton(open_dataset(labelled(words, name=f"{name}.tar"), labels="cls"), paths[-1])
    with pytest.raises(InvalidInput, match="must have one class list"):
        open_dataset(paths, labels="cls")
    both = open_dataset(paths, labels="cls", classes=["ant", "bee", "cat", "dog"])
    assert targets(both) == [3, 0, 2, 3, 1, 0]
    assert open_dataset(paths).classes is None


def test_a_beton_without_a_class_list_holds_numbers(labelled, tmp_path):
    path = str(tmp_path / "all.beton")
    write_beton(open_dataset(labelled([2, 0])), path)
    assert BetonDataset([path]).classes is None
    dataset = open_dataset(path, labels="cls")
    assert dataset.classes == ("0", "1", "2")
    assert targets(dataset) == [2, 0]
    with pytest.raises(InvalidInput, match="no class list"):
        open_dataset(path, labels="json:wnid")
    write_beton(open_dataset(labelled([2, None])), path)
    with pytest.raises(InvalidInput, match="1 of 2 samples have no label"):
        open_dataset(path, labels="cls")


def test_a_changed_class_list_starts_a_beton_over(labelled, tmp_path):
    """An interrupted file is continued only with the same labels."""
    shard = labelled(WORDS)
    plain, named = open_dataset(shard), open_dataset(shard, labels="cls")
    reordered = open_dataset(shard, labels="cls", classes=["dog", "cat", "ant"])
    made = [_Writer(one, tmp_path / "x", BetonOptions()) for one in (plain, named, reordered)]
    assert len({json.dumps(writer._settings) for writer in made}) == 3


def test_labels_through_pipes_and_streams(labelled, tmp_path):
    shards = [labelled(WORDS, name="a.tar"), labelled(["bee", "ant"], name="b.tar")]
    truth = open_dataset(shards, labels="cls")
    pytest.importorskip("webdataset", reason="pip install 'maskco-fast[remote]'")
    folder = str(tmp_path / "cache")
    pipes = f"pipe:cat {tmp_path}/{{a,b}}.tar"
    remote = RemoteConfig(cache_folder=folder)
    for _ in range(2):  # indexed, then from the stored index
        piped = open_dataset(pipes, labels="cls", remote=remote, index_folder=tmp_path / "index")
        assert piped.classes == truth.classes
        assert targets(piped) == targets(truth)
    stream = RemoteConfig(mode="stream", epoch_samples=6, cache_folder=folder)
    options: dict[str, Any] = {"labels": "cls", "remote": stream, "shuffle": False}
    options["views"] = ViewConfig.npid(32)
    with pytest.raises(InvalidInput, match="`classes` must be given for a stream"):
        make_loader(pipes, 6, **options)
    with make_loader(pipes, 6, classes=truth.classes, **options) as loader:
        (batch,) = loader
        assert loader.dataset.classes == truth.classes
    assert batch.target.tolist() == targets(truth)
    with (
        make_loader(pipes, 6, classes=["ant", "cat", "dog"], **options) as loader,
        pytest.raises(InvalidInput, match=r"b0 in .*b\.tar has the label 'bee' .* 3 classes"),
    ):
        list(loader)
    odd = labelled(["ant", None], name="c.tar")
    with (
        make_loader(odd, 2, classes=["ant"], **options) as loader,
        pytest.raises(InvalidInput, match=r"c1 in .*c\.tar has no label .*no \.cls member"),
    ):
        list(loader)


def test_real_labels(shared_data):
    dataset = open_dataset(str(shared_data / "in1k-sample-{0000..0003}.tar"), labels="json:wnid")
    assert len(set(targets(dataset))) == len(dataset.classes or ()) == 1000
    assert list(dataset.classes or ()) == sorted(dataset.classes or ())
    assert np.array_equal(np.sort(dataset.samples["target"]), np.arange(1000))
