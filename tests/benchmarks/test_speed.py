"""The commands that time decoding, kernels and cores, at small size."""

import sys
import types
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.speed import checkpoint_decoding, decode, decoders, kernels, scaling
from tests.support.images import encode, picture

MakeShards = Callable[..., list[str]]


def test_decode_prints_every_kind_of_image(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "SIZES", ((96, 64), (512, 512)))
    decode.main(decode.Options(shards=tuple(make_shards(1, 4)), images=3, rounds=1))
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [line[:24].strip() for line in lines] == [
        "as they are",
        "96 x 64",
        "512 x 512",
        "96 x 64, progressive",
        "512 x 512, progressive",
    ]
    assert all(line.count("x ") >= 2 for line in lines)


def test_decoding_from_checkpoints_is_measured(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str]
) -> None:
    options = checkpoint_decoding.Options(shards=tuple(make_shards(1, 4)), images=3, rounds=1)
    checkpoint_decoding.main(options)
    lines = capsys.readouterr().out.splitlines()[3:]
    names = [line[:18].strip() for line in lines]
    assert names == ["as they are", "4:4:4", "4:2:0", "640 x 480, 4:2:0"]
    assert all(line.count("x") >= len(checkpoint_decoding.KERNELS) for line in lines)


def test_decoders_are_measured_or_named_as_missing(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = dict(decoders.PEERS)
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    decoders.main(decoders.Options(shards=tuple(make_shards(1, 4)), images=3, rounds=1))
    *rows, last = capsys.readouterr().out.splitlines()[2:]
    measured, missing = [row[:14].strip() for row in rows], last.partition(": ")[2].split(", ")
    assert sorted([*measured, *missing]) == sorted([decoders.OURS, *peers])
    assert "OpenCV" in missing
    levels = {name: int(row.split()[-1]) for name, row in zip(measured, rows)}
    assert levels[decoders.OURS] == levels["simplejpeg"] == levels["Pillow"] == 0


def test_the_public_benchmarks_adapter_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its base class in place of the benchmark's, which is no package of an index."""
    module = types.ModuleType("imread_benchmark.decoders")
    module.BaseDecoder = type("BaseDecoder", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imread_benchmark", types.ModuleType("imread_benchmark"))
    monkeypatch.setitem(sys.modules, "imread_benchmark.decoders", module)
    from benchmarks.speed import maskco_fast_decoder

    data = encode(picture(24, 32, 0))
    decoded = maskco_fast_decoder.MaskCoFastDecoder().decode(data)
    np.testing.assert_array_equal(decoded, decoders.decode_reference(data))


def test_kernels_prints_every_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "FORMAT_NAMES", ["float16"])
    kernels.main(kernels.Options(views=2, rounds=1, size=64, height=80, width=96))
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in [*kernels.STAGES, "resize, flip", "all, float16"])


def test_scaling_measures_and_simulates(
    make_shards: MakeShards, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "SIMULATED_SAMPLES", 40)
    shards = tuple(make_shards(1, 8))
    chosen = scaling.Options(
        shards=shards, images=4, rounds=1, cores=(1, 64), batch_size=4, seconds=0.05
    )
    scaling.main(chosen)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[4:]]
    assert rows[0][0] == "1"
    assert rows[-1][:2] == ["64", "-"]


def test_more_sleeping_threads_make_more(make_shards: MakeShards) -> None:
    """A tenth of a second an image: 40 of them take one thread 4 s, and eight .5 s."""
    chosen = scaling.Options(shards=tuple(make_shards(1, 8)), cores=(1, 8), seconds=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "SIMULATED_SAMPLES", 40)
        patch.setattr(scaling, "SIMULATED_BATCH", 4)
        found = scaling.simulate(chosen, 0.1)
    assert 4 < found[1] <= 10
    assert 2 * found[1] < found[8] <= 80
    assert scaling.Scaling(measured={}, simulated=found, free_ms=100.0).share(8) <= 1
