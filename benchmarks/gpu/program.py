"""`maskco-fast`, also from a plain checkout: `python -m benchmarks.gpu.program train ...`."""

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.gpu import ROOT  # the package's import finds the product in a plain checkout
from maskco_fast.cli import main


def run_program(
    arguments: Sequence[str], seconds: float, launcher: Sequence[str] = (sys.executable,)
) -> None:
    """Run a command in a process of its own, for at most `seconds`.

    RuntimeError with the end of its output where it fails, subprocess.TimeoutExpired.
    """
    done = subprocess.run(
        [*launcher, "-m", "benchmarks.gpu.program", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stdout + done.stderr)[-1200:]}")


if __name__ == "__main__":
    sys.exit(main())
