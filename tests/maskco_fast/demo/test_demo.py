"""The demo set: reproducible bytes, valid shards, true labels, contexts that predict kinds."""

import collections
import io
import itertools
import json
import os
import tarfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskco_fast.demo.scenes import CONTEXTS, KINDS, MIN_VISIBLE, scene
from maskco_fast.demo.shards import demo_shards
from tests.support.processes import fork_context

SMALL: dict[str, Any] = {"samples": 12, "shards": 3, "size": (48, 64)}


def members(paths):
    """{member name: bytes} over all shards, each name once."""
    found = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for info in tar:
                assert info.name not in found
                file = tar.extractfile(info)
                assert file is not None
                found[info.name] = file.read()
    return found


def test_shards_hold_what_they_say(tmp_path):
    paths = demo_shards(tmp_path, **SMALL)
    found = members(paths)
    assert [path.exists() for path in paths] == [True] * 3
    assert len(found) == 12 * 3
    for i in range(12):
        pixels, label = scene(0, i, SMALL["size"])
        decoded = np.asarray(Image.open(io.BytesIO(found[f"{i:09d}.jpg"])))
        assert decoded.shape == pixels.shape
        assert np.abs(decoded.astype(int) - pixels).mean() < 12  # JPEG's loss, not another picture
        assert json.loads(found[f"{i:09d}.json"]) == label
        assert int(found[f"{i:09d}.cls"]) == label["context"]


def test_same_bytes_every_time_and_reused(tmp_path):
    first = demo_shards(tmp_path / "a", **SMALL)
    second = demo_shards(tmp_path / "b", **SMALL)
    assert [a.read_bytes() for a in first] == [b.read_bytes() for b in second]
    times = [path.stat().st_mtime_ns for path in first]
    assert demo_shards(tmp_path / "a", **SMALL) == first
    assert [path.stat().st_mtime_ns for path in first] == times


def test_a_missing_shard_is_drawn_alone(tmp_path):
    paths = demo_shards(tmp_path, **SMALL)
    wanted, kept = paths[1].read_bytes(), paths[0].stat().st_mtime_ns
    paths[1].unlink()
    assert demo_shards(tmp_path, **SMALL)[1].read_bytes() == wanted
    assert paths[0].stat().st_mtime_ns == kept


def test_other_choices_do_not_mix(tmp_path):
    first, other = demo_shards(tmp_path, **SMALL), demo_shards(tmp_path, **SMALL, seed=1)
    assert not set(first) & set(other)
    assert members(first)["000000000.jpg"] != members(other)["000000000.jpg"]


def test_progress_and_refusals(tmp_path):
    calls = []
    demo_shards(
        tmp_path,
        samples=130,
        shards=2,
        size=(32, 32),
        progress=lambda what, done, all_: calls.append((done, all_)),
    )
    assert calls == [(64, 130), (128, 130)]
    with pytest.raises(ValueError, match="got 4 shards for 3 samples"):
        demo_shards(tmp_path, samples=3, shards=4)
    with pytest.raises(ValueError, match="size"):
        demo_shards(tmp_path, size=(160, 128))


def test_cut_off_run_leaves_no_shard(tmp_path):
    def stop(what, done, all_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo_shards(tmp_path, samples=70, shards=1, size=(32, 32), progress=stop)
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []


def test_two_processes_at_once(tmp_path):
    processes = [
        fork_context().Process(target=demo_shards, args=(tmp_path,), kwargs=SMALL) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    names = [name for _, _, names in os.walk(tmp_path) for name in names]
    assert sorted(names) == [f"demo-{shard:04d}-of-0003.tar" for shard in range(3)]
    assert len(members(demo_shards(tmp_path, **SMALL))) == 36


def test_labels_are_true():
    for i in range(60):
        pixels, label = scene(3, i)
        height, width = pixels.shape[:2]
        assert 128 <= height <= 160
        assert 128 <= width <= 160
        assert CONTEXTS[label["context"]].name == label["context_name"]
        for found in label["objects"]:
            x1, y1, x2, y2 = found["box"]
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height
            assert MIN_VISIBLE <= found["visible"] <= 1
            assert KINDS[found["kind"]].name == found["kind_name"]


def test_an_object_stands_out_of_its_surroundings():
    """The picture inside a label's box differs from the ground beside it."""
    contrasts = []
    for i in range(80):
        pixels, label = scene(0, i)
        for found in label["objects"]:
            x1, y1, x2, y2 = found["box"]
            inside = pixels[y1:y2, x1:x2].reshape(-1, 3).astype(float)
            shifted = (x1 + pixels.shape[1] // 2) % (pixels.shape[1] - (x2 - x1) + 1)
            beside = pixels[y1:y2, shifted : shifted + x2 - x1].reshape(-1, 3).astype(float)
            contrasts.append(np.abs(inside.mean(0) - beside.mean(0)).max())
    assert np.median(contrasts) > 20


def test_the_context_predicts_the_kinds():
    """The context's likely kinds cover most objects of its scenes, and few of other scenes."""
    counts: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for i in range(600):
        _, label = scene(1, i, (64, 64))
        counts[label["context"]].update(found["kind_name"] for found in label["objects"])
    assert set(counts) == set(range(len(CONTEXTS)))
    total: collections.Counter[str] = sum(counts.values(), collections.Counter())
    assert set(total) == {kind.name for kind in KINDS}
    for number, context in enumerate(CONTEXTS):
        named = set(context.on_ground) | set(context.in_sky)
        share = sum(counts[number][name] for name in named) / counts[number].total()
        assert 0.85 < share < 0.98
        elsewhere = sum(total[name] for name in named) / total.total()
        assert elsewhere < 0.55


def test_neighbours_predict_in_rows():
    agreeing, pairs = 0, 0
    for i in range(300):
        _, label = scene(2, i)
        if CONTEXTS[label["context"]].row:
            ground = [
                found
                for found in label["objects"]
                if found["kind_name"] in CONTEXTS[label["context"]].on_ground
            ]
            kinds = [found["kind"] for found in ground]
            agreeing += sum(a == b for a, b in itertools.pairwise(kinds))
            pairs += max(len(kinds) - 1, 0)
    assert agreeing / pairs > 0.8


def test_mean_colour_hardly_predicts_the_context():
    """Nearest neighbours in mean colour predict the context little better than chance (1 in 8)."""
    scenes = [scene(4, i, (48, 48)) for i in range(500)]
    colours = np.array([pixels.reshape(-1, 3).mean(0) for pixels, _ in scenes])
    contexts = np.array([label["context"] for _, label in scenes])
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (contexts[distances.argmin(1)] == contexts).mean() < 0.3
