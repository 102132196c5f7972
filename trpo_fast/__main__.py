"""`python -m trpo_fast` is the same program as `trpo-fast`."""

import sys

from trpo_fast.cli import main

sys.exit(main())
