"""`python -m microvm.cli`."""

import sys

from microvm.cli import main

sys.exit(main())
