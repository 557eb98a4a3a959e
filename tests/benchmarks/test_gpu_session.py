"""The session of measurements on a GPU: parts cannot stop each other; each runs dry on a CPU."""

import importlib
import json
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import tyro

from benchmarks.estimates import graph
from benchmarks.gpu import (
    ROOT,
    augmentation,
    batch_norm,
    check,
    commands,
    dali,
    marked_tests,
    probe,
    program,
    rows,
    run,
    step,
)
from benchmarks.gpu import __main__ as session
from benchmarks.gpu.lines import Lines
from benchmarks.gpu.photographs import copy_shards
from benchmarks.gpu.timeline import summarise
from maskco_fast import cli
from maskco_fast.bench import timing
from maskco_fast.bench.harness import RowProcess, _row_error
from maskco_fast.loaders import open_dataset
from maskco_fast.training.trainer import Trainer
from tests.support.commands import parse_command
from tests.support.tiny_run import NoiseLoader, TinyMaskCo, tiny_config, tiny_trainer

NOTES = """
import pathlib, sys, time
from benchmarks.gpu.lines import Lines
lines = Lines(pathlib.Path(sys.argv[-1]))
lines.note("first", 1)
lines.attempt("second", lambda: 1 / 0)
"""


def small(options: type, **fields: Any) -> Any:
    """A part's options for a dry run, without JSON."""
    return options(device="cpu", **fields)


def small_step(**fields: Any) -> step.Options:
    sizes = {"trunk": "resnet18", "batch": 4, "group": 2, "size": 32, "warm": 1, "steps": 2}
    return small(step.Options, **sizes, **fields)


def written(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_parts_cannot_stop_each_other(tmp_path: pathlib.Path) -> None:
    """One that hangs, with a child of its own, one that fails, and one after them."""
    child = "import subprocess, sys; subprocess.Popen(['sleep', '60']); "
    parts = {
        "hangs": (3.0, ["-c", f"{NOTES}{child}time.sleep(60)"]),
        "fails": (30.0, ["-c", "raise SystemExit(3)"]),
        "works": (30.0, ["-c", NOTES]),
    }
    entries = session.run_session(parts, 100.0, tmp_path)
    assert [entries[name]["exit_code"] for name in parts] == [124, 3, 0]
    kept = {"first": 1, "second": {"failed": "ZeroDivisionError: division by zero"}}
    assert entries["hangs"]["results"] == kept
    assert entries["hangs"]["seconds"] < 20
    assert entries["fails"]["results"] is None
    assert "no results" in entries["fails"]["note"]
    assert entries["works"]["results"] == kept
    assert written(tmp_path / "session.json") == entries


def test_a_part_without_time_is_left_out(tmp_path: pathlib.Path) -> None:
    entries = session.run_session({"late": (30.0, ["-c", NOTES])}, 5.0, tmp_path)
    assert entries["late"]["exit_code"] is None
    assert not (tmp_path / "late.log").exists()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("name", session.PARTS)
def test_every_parts_options_are_its_commands(name: str, device: str) -> None:
    """A part whose options are misspelled would fail on the GPU machine only."""
    options = session.Options(device=device)
    out, shards = pathlib.Path("out of here"), "a folder/{0000..0003}.tar"
    _, module, *arguments = session.PARTS[name].arguments(options, out, shards)
    parsed = tyro.cli(importlib.import_module(module).Options, args=[*arguments, "--json=x"])
    assert parsed.json == pathlib.Path("x")
    if "shards" in session.PARTS[name].command:
        assert parsed.shards == shards


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert session.main(session.Options(parts=("step", "stop"))) == 2
    assert "no part stop" in capsys.readouterr().out


def test_wheels_are_used_without_installing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    with zipfile.ZipFile(tmp_path / "one_module-1-py3-none-any.whl", "w") as archive:
        archive.writestr("module_of_a_wheel.py", "VALUE = 7\n")
    names = session.use_wheels(tmp_path, tmp_path / "unpacked")
    assert names == ["one_module-1-py3-none-any.whl"]
    assert importlib.import_module("module_of_a_wheel").VALUE == 7
    assert session._environment()["PYTHONPATH"].endswith(str(tmp_path / "unpacked"))


def test_a_plain_checkout_holds_the_whole_package() -> None:
    """Nothing is installed, and the folder maskco_fast/ is found first."""
    code = (
        "import sys\n"
        "sys.meta_path = [one for one in sys.meta_path if 'editable' not in repr(one).lower()]\n"
        "sys.path = [p for p in sys.path if 'editable' not in p]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import benchmarks.gpu, maskco_fast.kernels.errors, maskco_fast.loaders.system.cpus\n"
        "print(maskco_fast.loaders.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(ROOT / "loaders" / "__init__.py"), done.stderr


def test_a_timeline_of_overlapping_kernels() -> None:
    def event(name: str, begin: float, took: float, kind: str = "kernel") -> dict[str, Any]:
        return {"ph": "X", "cat": kind, "name": name, "ts": begin, "dur": took, "args": {}}

    events = [
        event("long", 0, 3000),
        event("short", 2000, 2000),  # beside the end of the other
        event("short", 8000, 2000, "gpu_memcpy"),
        event("host", 0, 99000, "cpu_op"),
    ]
    found = summarise(events, calls=2)
    assert found is not None
    assert found.milliseconds == pytest.approx(5.0)
    assert found.busy == pytest.approx(0.6)
    assert found.launches == 1.5
    assert [(one.name, one.milliseconds) for one in found.kernels] == [("short", 2), ("long", 1.5)]
    assert "busy 60.0%, 2 launches" in found.table()
    assert summarise(events[3:], calls=1) is None


def test_photographs_are_copied_under_other_keys(
    make_shards: Callable[..., list[str]], tmp_path: pathlib.Path
) -> None:
    source = pathlib.Path(make_shards(1, 4)[0])
    pattern = copy_shards(source.parent, tmp_path, 3)
    dataset = open_dataset(pattern)
    assert len(dataset) == 12
    assert len(set(dataset.samples["sample_id"])) == 12
    assert dataset.read(0) == dataset.read(4) == open_dataset([str(source)]).read(0)


def test_probe(tmp_path: pathlib.Path) -> None:
    assert probe.main(small(probe.Options, rounds=1, json=tmp_path / "a.json")) == 0
    found = written(tmp_path / "a.json")
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert all(found[name] > 0 for name in ("copy_tb_per_s", "bf16_tflops", "upload_gb_per_s"))


def test_values_and_times(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PEERS", {})
    sizes = {"batch": 4, "checked": 4, "size": 32, "repeats": 1, "calls": 1}
    for only in ("values", "times"):
        path = tmp_path / f"{only}.json"
        assert check.main(small(check.Options, only=only, json=path, **sizes)) == 0
        assert written(path)["values"]["levels"].startswith("ok")
    assert written(tmp_path / "times.json")["plain torch, eager"]["ms"] > 0


def test_the_compiled_step(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a small network: tracing ResNet-18 takes a minute."""

    def make_trainer(options: step.Options, variant: str, folder: str) -> Trainer:
        return tiny_trainer(tiny_config(pathlib.Path(folder), compile=variant == "compile"))

    monkeypatch.setattr(step, "make_trainer", make_trainer)
    path = tmp_path / "compiled.json"
    options = small_step(variants=("compile",), force_backend="aot_eager", json=path)
    assert step.main(options) == 0, written(path)
    assert written(path)["compile"]["milliseconds"] > 0


def test_step_and_augmentation(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "step.json"
    assert step.main(small_step(variants=("eager", "one-group"), json=path)) == 0
    for variant in ("eager", "one-group"):
        assert written(path)[variant]["images_per_s"] > 0
    path = tmp_path / "augmentation.json"
    assert augmentation.main(small(augmentation.Options, batch=2, size=32, calls=1, json=path)) == 0
    assert "blur" in written(path)["plain torch"]
    path = tmp_path / "batch-norm.json"
    assert batch_norm.main(small(batch_norm.Options, json=path)) == 0
    assert "left out" in written(path)["triton"]


def test_a_failing_variant_is_a_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(options: step.Options, variant: str) -> int:
        if variant == "eager":
            raise RuntimeError("out of memory")
        return 1

    monkeypatch.setattr(step, "measure", measure)
    path = tmp_path / "a.json"
    assert step.main(small_step(variants=("eager", "fp32"), json=path)) == 1
    assert written(path)["eager"] == {"failed": "RuntimeError: out of memory"}
    assert written(path)["fp32"] == 1


def test_train_is_fed(make_shards: Callable[..., list[str]], tmp_path: pathlib.Path) -> None:
    shards = str(pathlib.Path(make_shards(1, 8)[0]).parent / "*.tar")
    path = tmp_path / "train.json"
    options = small_step(shards=shards, train_steps=2, loader_seconds=0.05, json=path)
    assert step.main(options) == 0, written(path)
    fed = written(path)["fed"]
    assert fed["metered_images_per_s"] == pytest.approx(fed["images_per_s"], rel=0.2)
    assert 0 <= fed["metered_data_wait"] <= 1


def test_run_and_its_resumption(
    make_shards: Callable[..., list[str]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The starts, which are processes, happen here."""

    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, cli.main(command[3:]), "", "")

    monkeypatch.setattr(program.subprocess, "run", here)
    path = tmp_path / "run.json"
    arguments = (
        "--recipe demo --loader native --batch-size 4 --model.group-size 2 --model.view-size 32 "
        "--device cpu --no-tensorboard"
    )
    options = run.Options(
        shards=make_shards(1, 8)[0], arguments=arguments, steps=2, resumed_steps=3, json=path
    )
    assert run.main(options) == 0, written(path)
    assert written(path)["resumed"]["steps_are_whole"]
    assert written(path)["resumed"]["first_and_last_loss"][0] > 0


def test_commands_are_the_programs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line parses. What the commands do is their own tests' matter: results are made up."""
    seen = []

    def here(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        words = command[command.index(program.__name__) + 1 :]
        config = parse_command(["maskco-fast", *words])
        seen.append(words[0])
        if words[0] == "train":
            config.run_dir.mkdir(parents=True)
            losses = "".join(json.dumps({"loss": float(9 - step)}) + "\n" for step in range(4))
            (config.run_dir / "metrics.jsonl").write_text(losses)
        if getattr(config, "json", None):
            result = {"top1": 50.0, "AP": 1.0, "AP50": 2.0, "weights": {}, "images": {"val": 3}}
            pathlib.Path(config.json).write_text(json.dumps(result))
        failed = words[0] == "mph"
        return subprocess.CompletedProcess(command, int(failed), "", "no head" if failed else "")

    monkeypatch.setattr(program.subprocess, "run", here)
    path = tmp_path / "commands.json"
    assert commands.main(small(commands.Options, json=path)) == 1
    assert [*dict.fromkeys(seen)] == [
        "train",
        "knn",
        "linear",
        "distance",
        "export",
        "mph",
        "detect",
    ]
    assert seen[-1] == "train"
    found = written(path)
    assert found["train by torchrun"]["first_and_last_losses"] == [7.5, 7.5]
    assert found["knn"]["cpu"]["top1"] == 50
    assert found["detect"]["AP50"] == 2
    assert found["export and mph"] == {"failed": "RuntimeError: exit code 1: no head"}


def test_marked_tests_are_counted(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "tests.json"
    arguments = "-m 'not gpu' tests/maskco_fast/test_progress.py"
    assert marked_tests.main(marked_tests.Options(arguments=arguments, processes=1, json=path)) == 0
    found = written(path)["tests"]
    assert found["passed"] > 0
    assert found["failed"] == 0


def test_dali(make_shards: Callable[..., list[str]], tmp_path: pathlib.Path) -> None:
    pytest.importorskip("nvidia.dali")
    path = tmp_path / "dali.json"
    sizes = {"batch": 4, "batches": 2, "timed_batch": 4, "size": 32, "seconds": 0.05}
    options = small(dali.Options, shards=make_shards(1, 8)[0], json=path, **sizes)
    assert dali.main(options) == 0, written(path)
    assert written(path)["regions decoded on the CPU: values"]["numbers_equal"]


def test_rows_of_the_bench(
    make_shards: Callable[..., list[str]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing GPU is no failure. The rows run here, in no processes of their own."""

    class Here(RowProcess):
        def __init__(self, name: str, open_row: Callable[[], Any]) -> None:
            self.name, self.error, self._open = name, None, open_row

        def ask(self, method: str, *arguments: Any) -> Any:
            try:
                return getattr(self._open(), method)(*arguments)
            except Exception as error:
                self.error = _row_error(error)
                raise self.error from None

        def close(self) -> None:
            """Nothing to end."""

    monkeypatch.setattr(timing, "RowProcess", Here)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "rows.json"
    sizes: dict[str, Any] = {
        "batch": 4,
        "size": 32,
        "rounds": 1,
        "seconds": 0.05,
        "workers": 1,
    }
    chosen = ("native_gpu", "cached_batch")
    options = rows.Options(shards=make_shards(1, 8)[0], rows=chosen, json=path, **sizes)
    assert rows.main(options) == 0
    assert written(path)["native_gpu"]["missing"]
    assert written(path)["cached_batch"]["images_per_s"] > 0


def test_the_graph_of_a_step(tmp_path: pathlib.Path) -> None:
    """One graph, of a size that a change must not raise unseen: a network of one BatchNorm layer.

    `python -m benchmarks.estimates.graph --trunk resnet18 --groups 2` found 3327 nodes with torch's
    operators for each group.
    """
    method = TinyMaskCo(tiny_config(tmp_path))
    counts = graph.count(method.train(), next(iter(NoiseLoader())))
    assert counts.graphs == 1
    assert 0 < counts.nodes < MOST_NODES


MOST_NODES = 600
"""Of `TinyMaskCo`'s step with two groups, forward and backward."""


def test_lines_print_and_keep(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(tmp_path / "a.json")
    lines.note("long", list(range(100)), shown="100 numbers")
    assert capsys.readouterr().out == 'long: "100 numbers"\n'
    assert written(tmp_path / "a.json") == {"long": list(range(100))}
    assert not lines.failed
