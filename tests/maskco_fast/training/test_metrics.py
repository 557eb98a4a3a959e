"""Metrics: no step twice, none lost; a progress line for terminals and one for logs."""

import io
import json

import pytest

from maskco_fast.training import metrics
from maskco_fast.training.metrics import Metrics, StepsFile, TrainingProgress, describe


def line(step: int, **fields: float) -> dict:
    return {
        "step": step,
        "epoch": 0,
        "loss": 6.0,
        "learning_rate": 0.03,
        "images_per_s": 20.0,
        "data_wait": 0.5,
        **fields,
    }


def write(path, steps, *, after: int) -> None:
    file = StepsFile(path, step=after)
    for step in steps:
        file.write(line(step))
    file.sync()
    file.close()


def steps_in(path) -> list[int]:
    return [json.loads(text)["step"] for text in path.read_text().splitlines()]


def test_resuming_cuts_the_later_steps(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    write(path, range(1, 9), after=0)
    write(path, [6, 7], after=5)
    assert steps_in(path) == [1, 2, 3, 4, 5, 6, 7]
    write(path, [1], after=0)  # killed before its first checkpoint
    assert steps_in(path) == [1]


@pytest.mark.parametrize(
    "rest", ['{"step": 3, "lo', '{"step": 3, "loss": 1}', "\0\0\0\0", '{"loss": 1}\n', "7\n"]
)
def test_a_line_broken_by_a_crash_is_cut(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    write(path, [1, 2], after=0)
    with path.open("a") as file:
        file.write(rest)
    write(path, [3], after=3)
    assert steps_in(path) == [1, 2, 3]


def test_losses_keep_every_bit(tmp_path):
    path = tmp_path / "metrics.jsonl"
    value = 6.107431411743164
    file = StepsFile(path, step=0)
    file.write(line(1, loss=value))
    with pytest.raises(ValueError, match="JSON"):
        file.write(line(2, loss=float("nan")))
    file.close()
    assert json.loads(path.read_text())["loss"] == value


def test_describe():
    text = describe([line(119, loss=5.0), line(120, data_wait=0.0)], 300, remaining=3723.9)
    assert (
        text
        == "step 120/300 · 20.0 images/s · loss 5.500 · lr 0.03 · data wait 25 % · ETA 1:02:04 h"
    )
    assert describe([line(1)], 2, remaining=None).endswith("ETA ?")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream_class", [io.StringIO, Terminal])
def test_progress_is_one_line_on_a_terminal_and_seldom_in_a_log(stream_class, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    stream = stream_class()
    progress = TrainingProgress(steps=100, window=10, stream=stream)
    for step in range(1, 41):
        clock[0] += 1.0
        progress.add(line(step))
    clock[0] += 0.1
    progress.close()
    text = stream.getvalue()
    assert text.endswith("\n")
    assert "step 40/100" in text.splitlines()[-1]
    if stream_class is Terminal:
        assert text.count("\n") == 1
        assert text.count("\r") == 40
    else:
        assert text.count("\n") == 5  # the first step, every tenth second, and the last
        assert "\r" not in text
    assert "ETA 1:00 min" in text


def test_tensorboard_gets_every_log_every_th_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Metrics(
        tmp_path, step=0, steps=6, log_every=2, loggers=["tensorboard"], log_samples=True
    ) as metrics_of_run:
        for step in range(1, 7):
            metrics_of_run.record(line(step, loss=float(step)), [10 * step, 10 * step + 1])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (2, 2.0),
        (4, 4.0),
        (6, 6.0),
    ]
    assert steps_in(tmp_path / "metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    *_, last = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    assert last == {"step": 6, "epoch": 0, "sample_ids": [60, 61]}
