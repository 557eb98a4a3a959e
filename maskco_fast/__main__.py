"""`python -m maskco_fast`, as torchrun calls it."""

import sys

from maskco_fast.cli import main

sys.exit(main())
