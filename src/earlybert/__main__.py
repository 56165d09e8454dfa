"""`python -m earlybert`, and what `torchrun -m earlybert` starts in every process."""

import sys

from .cli import main

sys.exit(main())
