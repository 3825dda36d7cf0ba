"""``python -m cosmos_fast`` is ``cosmos-fast``; also what torchrun starts."""

import sys

from cosmos_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
