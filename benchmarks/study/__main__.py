"""The study: `plan`, `sweep`, `run`, `report`, and `paper` for the paper's own size.

    python -m benchmarks.study COMMAND --help

docs/study.md has the reasons, the claims and the results.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from benchmarks.study import plan
from benchmarks.study.paper import Paper, paper
from benchmarks.study.report import Report, report
from benchmarks.study.run import Run, run
from benchmarks.study.sweep import Sweep, sweep
from maskco_fast.errors import report_user_errors


@dataclass(frozen=True)
class Plan:
    """Print the plan as JSON."""


Options = (
    Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Paper, tyro.conf.subcommand("paper")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    command = tyro.cli(Options, description=__doc__, args=arguments)  # type: ignore[call-overload]
    if isinstance(command, Sweep):
        return sweep(command)
    if isinstance(command, Run):
        return run(command)
    if isinstance(command, Report):
        return report(command)
    if isinstance(command, Paper):
        return paper(command)
    print(f"plan {plan.stamp()}\n{plan.as_json()}")
    return 0


if __name__ == "__main__":
    sys.exit(report_user_errors(main))
