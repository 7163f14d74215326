"""`python -m haclusterd` and the command `haclusterd`: the heart, which starts all the rest."""

from __future__ import annotations

import sys

from haclusterd.heart.main import main

if __name__ == "__main__":
    sys.exit(main())
