"""`python -m octavo` is `octavo`."""

from __future__ import annotations

import sys

from octavo.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
