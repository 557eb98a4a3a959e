"""`maskco-fast`, also from a plain checkout: `python -m benchmarks.gpu.program train ...`."""

import sys

import benchmarks.gpu  # noqa: F401  finds the package in a plain checkout
from maskco_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
