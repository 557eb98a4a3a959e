"""`python -m maskco_fast`: the command line as a module, which is how torchrun starts it."""

import sys

from maskco_fast.cli import main

sys.exit(main())
