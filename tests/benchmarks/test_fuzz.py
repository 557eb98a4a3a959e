"""The fuzzer: a short run of every target finds nothing, and broken rules are found."""

import io
import os
import signal
import tarfile

import numpy as np
import pytest

from benchmarks.correctness.fuzz import __main__ as fuzz
from benchmarks.correctness.fuzz import guard, mutate, seeds, targets
from tests.support.images import skip_without_packages

SHORT = {
    "jpeg": 150,
    "records": 60,
    "transcoding": 40,
    "checkpoints": 100,
    "headers": 150,
    "images": 100,
    "tars": 30,
    "loaders": 1,
}
"""Executions by target; a second or so each."""


@pytest.mark.parametrize("name", SHORT)
def test_a_short_run_finds_nothing(name):
    (target,) = (target for target in targets.TARGETS if target.name == name)
    tally = fuzz.run_round(target, 0, 0, SHORT[name])
    assert tally.executions == SHORT[name]
    assert list(tally.findings) == []


def test_the_loaders_that_are_compared_are_those_that_are_installed():
    assert targets.installed_loaders()[0] == "reference"
    for name in ("dali", "ffcv"):
        try:
            skip_without_packages(name)
        except pytest.skip.Exception:
            continue
        assert name in targets.installed_loaders()


def test_the_same_seed_makes_the_same_inputs_and_most_are_damaged():
    whole = seeds.jpegs()[2]
    made = [[mutate.damage_jpeg(np.random.default_rng(n), whole) for n in range(50)] for _ in "ab"]
    assert made[0] == made[1]
    assert sum(data != whole for data in made[0]) > 40


@pytest.mark.timeout(20)
def test_the_referee_of_tars_does_not_go_round_for_ever():
    """tarfile goes back by a negative size; Python 3.14's no longer does."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.pax_headers = {"size": "-1536"} if number == 1 else {}
            archive.addfile(info)
    assert targets.images_by_tarfile(buffer.getvalue()) in (None, 1)
    assert targets.images_by_tarfile(seeds.tar({"0.jpg": b"", "1.txt": b"", "0.png": b""})) == 1


def crash(data, random):
    if data[0] == 7:
        os.kill(os.getpid(), signal.SIGSEGV)


def overrun(data, random):
    memory = guard.GuardedBytes(100)(data)
    np.lib.stride_tricks.as_strided(memory, (len(data) + 1,))[-1]


def escape(data, random):
    raise ZeroDivisionError


def differ(data, random):
    raise targets.Finding("two decoders differ")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (crash, "ends the process by SIGSEGV"),
        (overrun, "ends the process by SIGSEGV"),
        (escape, "ZeroDivisionError escapes"),
        (differ, "two decoders differ"),
    ],
)
def test_broken_rules_are_found(check, message, monkeypatch, tmp_path, capsys):
    target = targets.Target("odd", lambda random: bytes([7, 1, 2]), check, 3)
    monkeypatch.setattr(fuzz, "TARGETS", (target,))
    assert fuzz.main(fuzz.Options(seconds=0.1, findings=tmp_path)) == 1
    assert f"odd: {message} (3 bytes)" in capsys.readouterr().out
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == bytes([7, 1, 2])


def test_a_hang_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "HANG_S", 1.0)
    target = targets.Target("odd", lambda random: b"x", lambda *_: signal.pause(), 1)
    assert list(fuzz.in_child(target, 0, 0).findings) == ["hangs"]


def loop(data, random):
    while True:
        pass


def test_an_endless_loop_is_found_and_a_slow_machine_is_not_one(monkeypatch):
    monkeypatch.setattr(fuzz, "HANG_CPU_S", 0.5)
    target = targets.Target("odd", lambda random: b"x", loop, 1)
    assert list(fuzz.in_child(target, 0, 0).findings) == ["hangs"]
    monkeypatch.setattr(fuzz, "HANG_S", 10.0)
    clock = iter([0.0, 5.0, 14.0, 23.0, 33.5, 33.5])
    monkeypatch.setattr(fuzz.time, "monotonic", lambda: next(clock))
    used = iter([0.0, 0.1, 0.2, 0.2, 0.2])
    monkeypatch.setattr(fuzz._Watch, "_used", lambda self: 6 * next(used))
    monkeypatch.setattr(fuzz, "HANG_CPU_S", 300.0)
    watch = fuzz._Watch(os.getpid())
    assert [watch.hangs() for _ in range(3)] == [False, False, True]


def test_slowness_is_a_finding_unless_it_is_compilation(monkeypatch):
    """Compilation happens once: the same input is quick when it is tried again."""
    seconds = iter([1.0, 0.0, 1.0, 1.0])
    monkeypatch.setattr(fuzz, "_try", lambda *_: (next(seconds), ""))
    monkeypatch.setattr(fuzz, "SLOW_S", 0.5)
    target = targets.Target("odd", lambda random: b"x", lambda *_: None, 1)
    assert list(fuzz.run_round(target, 0, 0, 1).findings) == []
    assert list(fuzz.run_round(target, 0, 0, 1).findings) == ["takes more than 0 s"]


def test_targets_are_named():
    with pytest.raises(ValueError, match="`only` must be among"):
        fuzz.main(fuzz.Options(only=("jpg",)))
