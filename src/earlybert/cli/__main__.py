"""`python -m earlybert.cli`."""

import sys

from . import main

sys.exit(main())
