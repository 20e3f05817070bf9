"""`python -m benchmarks.report` prints or writes the report."""

import sys

from .report import main

sys.exit(main())
