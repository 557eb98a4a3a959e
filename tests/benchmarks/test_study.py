"""The study: verdicts on made-up results, options that the command line takes, one short run."""

import dataclasses
import json
import math
import shlex

import pytest

from benchmarks.study import one, plan
from benchmarks.study.__main__ import main
from benchmarks.study.paper import ROWS, Paper, commands
from benchmarks.study.report import interval, judge
from maskco_fast.evaluation.paper import PAPER_ABLATIONS, PAPER_ROWS
from maskco_fast.kernels.errors import InvalidInput
from tests.support.commands import parse_command

CLAIM = plan.Claim(
    name="a claim", says="", measure="top1", terms={"one": 1.0, "other": -1.0}, bound=2.0
)


@pytest.mark.parametrize(
    ("bound", "differences", "word"),
    [
        (2.0, (3, 4, 5), "held"),
        (2.0, (3, 9, -3), "cannot be told"),  # beyond the bound, but so may 0 be
        (2.0, (1, 1.1, 0.9), "failed"),
        (2.0, (-4, -5, -4.5), "failed"),
        (2.0, (4,), "cannot be told"),
        (None, (-4, -5, -4.5), "held"),
        (None, (4, -5, 1), "cannot be told"),
    ],
)
def test_verdicts(bound, differences, word):
    measured = {
        "one": {seed: {"top1": 10 * seed + d} for seed, d in enumerate(differences)},
        "other": {seed: {"top1": 10.0 * seed} for seed in range(9)},
    }
    verdict = judge(dataclasses.replace(CLAIM, bound=bound), measured)
    assert verdict.values == pytest.approx(differences)
    assert verdict.word == word


def test_the_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)  # t(.975, 2) from a table
    assert interval([5.0]) == (5, math.inf)


def test_every_arm_trains_as_the_plan_says():
    for arm in (*plan.ARMS, *plan.SWEEP_ARMS):
        if arm.method == "random":
            continue
        options = arm.train_options(3).items()
        words = [word for name, value in options for word in one.option(name, value)]
        config = parse_command(["maskco-fast", "train", *words])
        assert (config.seed, config.max_steps, config.batch_size) == (3, 2000, 64)
        assert config.model.trunk == "resnet10-small"
        assert config.maskco.mask is (arm.name != "maskco-unmasked")
        assert config.optimizer.learning_rate == arm.train_options(3)["optimizer.learning-rate"]
        assert config.optimizer.weight_decay == 1e-4


def test_the_plan_is_printed(capsys):
    assert main(["plan"]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first == f"plan {plan.stamp()}"
    assert json.loads(rest)["steps"] == plan.STEPS


def test_claims_are_about_arms_and_measures():
    names = {arm.name for arm in plan.ARMS}
    for claim in plan.CLAIMS:
        assert set(claim.terms) <= names
        assert claim.measure in plan.MEASURES
        assert sum(claim.terms.values()) == 0


def test_the_papers_commands_are_commands():
    lines = [shlex.split(line) for line in commands(Paper()) if line.startswith("maskco-fast")]
    trained = [parse_command(words).run_dir.name for words in lines if words[1] == "train"]
    assert len(trained) == len(set(trained)) == len({row.run for row in ROWS})
    assert {row.paper for row in ROWS if row.paper} == {*PAPER_ROWS, *PAPER_ABLATIONS}


def test_a_short_run_is_measured_and_refused_by_the_report(make_shards, tmp_path, capsys):
    shards = make_shards(1, 64)
    folder = tmp_path / "study"
    for arm in ("maskco", "random"):
        options = one.Options(
            arm=arm, seed=1, folder=folder, train=tuple(shards), test=tuple(shards), steps=2
        )
        assert one.run(options) == 0
        result = json.loads(one.result_path(folder, arm, 1).read_text())
        assert result["plan"] == plan.stamp()
        measured = result["measured"]["2"]
        assert set(measured) == set(plan.MEASURES) - {"loss"}
        assert all(0 <= value <= 100 for value in measured.values())
    assert result.get("loss") is None
    results = folder / "results.jsonl"
    results.write_text(json.dumps(result) + "\n")
    with pytest.raises(InvalidInput, match=r"2000 steps, got random-1 of plan .* 2 steps"):
        main(["report", "--results", str(results), "--out", str(tmp_path / "report")])
    result |= {"steps": plan.STEPS, "measured": {str(plan.STEPS): measured}}
    results.write_text(json.dumps(result) + "\n")
    assert main(["report", "--results", str(results), "--out", str(tmp_path / "report")]) == 0
    assert "| random | 1 |" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "claims.png").stat().st_size > 5000
