"""``python -m lficam`` is ``lficam``."""

import sys

from lficam.cli import main

if __name__ == "__main__":
    sys.exit(main())
