"""The seeded faults: each has its place, is noticed, and leaves the working tree unchanged."""

import dataclasses
import pathlib

import pytest

from benchmarks.correctness import mutants
from benchmarks.correctness.mutants import MUTANTS, ORDER, ROOT, TEST_ORDER, Mutant, apply


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_still_has_its_place(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert apply(mutant, text) != text
    assert all((ROOT / test).exists() for test in mutant.tests)


def test_a_killed_and_a_surviving_mutant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    one_test = (f"{TEST_ORDER[0]}::test_seed_and_epoch_change_the_order",)
    fault = next(mutant for mutant in MUTANTS if "the same order" in mutant.name)
    fault = dataclasses.replace(fault, tests=one_test)
    harmless = Mutant(
        "order: a comment", ORDER, "import numpy as np", "import numpy as np  #", one_test
    )
    before = (ROOT / ORDER).read_bytes()
    monkeypatch.setattr(mutants, "MUTANTS", (fault, harmless))
    assert mutants.main(mutants.Options()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("killed")
    assert lines[1].startswith("SURVIVES")
    assert lines[-1] == "1 of 2 killed"
    assert (ROOT / ORDER).read_bytes() == before
