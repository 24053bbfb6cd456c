"""`python -m autoprune` is the command line."""

import sys

from autoprune.cli import main

sys.exit(main())
