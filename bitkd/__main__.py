"""`python -m bitkd`."""

import sys

from bitkd.cli import main

sys.exit(main())
