"""``python -m samunet``: the command ``samunet``."""

import sys

from samunet.commands import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
