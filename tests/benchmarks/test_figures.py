"""The command that measures and draws docs/performance.md, at small size."""

import json
import pathlib
from collections.abc import Callable

import pytest
from PIL import Image

from benchmarks.figures import __main__ as command
from benchmarks.figures import measure, tables
from benchmarks.speed import decode, step

MakeShards = Callable[..., list[str]]


def test_measures_writes_and_redraws_the_same(
    make_shards: MakeShards,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One run of every part, the training step's included, whose own command prints the same."""
    monkeypatch.setattr(decode, "SIZES", ((96, 64),))
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- generated: bench -->\nold\n<!-- end -->\nafter\n")
    options = command.Options(
        shards=tuple(make_shards(1, 12)),
        out=tmp_path,
        rows="native,ffcv_ssl,decode_only",
        rounds=1,
        seconds=0.1,
        batch_size=4,
        size=64,
        decode_images=3,
        decode_rounds=1,
        step_batch=4,
        product_side=64,
        trunk="resnet18",
    )
    assert command.main(options) == 0
    figures = json.loads((tmp_path / "performance.json").read_text())
    assert {*measure.PARTS} <= {*figures}
    assert figures["command"].startswith(
        "python -m benchmarks.figures --out docs --shards 'shard-0000.tar' --rows native,ffcv_ssl"
    )
    text = document.read_text()
    assert figures["command"] in tables.machine_block(figures)
    assert text.startswith("before\n<!-- generated: bench -->\nTwo finished")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "| `native`: our native loader" in text
    assert "Not measured: `ffcv_ssl` (" in text
    assert str(tmp_path) not in text + json.dumps(figures)
    pictures = ("bench.png", "stages.png", "cores.png")
    for name in pictures:
        with Image.open(tmp_path / name) as image:
            assert image.width > 300
    drawn = {name: (tmp_path / name).read_bytes() for name in pictures}
    assert command.main(command.Options(from_json=True, out=tmp_path)) == 0
    assert document.read_text() == text
    assert {name: (tmp_path / name).read_bytes() for name in pictures} == drawn

    monkeypatch.setattr(step, "measure", lambda options: step.Figures(**figures["step"]))
    step.main(step.Options(trunk="resnet18", size=64, batch_size=4, rounds=1))
    shown, told = capsys.readouterr()
    assert "loss of ours in fp32" in told
    assert all(stage in shown for stage in step.STAGES)


def test_a_failing_part_leaves_the_others(
    make_shards: MakeShards, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: command.Options) -> None:
        raise RuntimeError("no step here")

    monkeypatch.setitem(measure.PARTS, "step", fail)
    monkeypatch.setitem(measure.PARTS, "stages", lambda options: dict.fromkeys(STAGES, 0.5))
    options = command.Options(
        shards=tuple(make_shards(1, 4)), out=tmp_path, parts=("step", "stages")
    )
    assert command.main(options) == 1
    text = (tmp_path / "performance.md").read_text()
    assert "| decode | 0.500 | 12% |" in text  # of eight stages; "index" is not one of an image
    assert (tmp_path / "stages.png").exists()


STAGES = ("index", "plan", "read", "decode", "resize", "colour", "blur", "store", "hand-over")


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="`shards` must name"):
        command.Options()
    with pytest.raises(ValueError, match="`parts` must be among"):
        command.Options(from_json=True, parts=("speed",))


def test_only_the_named_block_is_replaced() -> None:
    text = tables.empty_document({"bench": "", "step": ""})
    filled = tables.replace_block(text, "step", "new")
    assert filled is not None
    assert "<!-- generated: step -->\nnew\n<!-- end -->" in filled
    assert "<!-- generated: bench -->\n<!-- end -->" in filled
    assert tables.replace_block(text, "decode", "new") is None


def test_every_row_is_measured_or_left_out_on_purpose() -> None:
    from maskco_fast.bench.rows import ROWS

    on_gpu = {name for name, row in ROWS.items() if "native_gpu" in (name, row.beside)}
    assert {*ROWS} - {*measure.ROWS} == {"reference", "litdata", *on_gpu}
    assert all(ROWS[name].views == 2 for name in tables.LABELS)
