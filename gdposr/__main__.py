"""`python -m gdposr` is the command `gdposr`."""

import sys

from gdposr.cli import main

if __name__ == "__main__":
    sys.exit(main())
