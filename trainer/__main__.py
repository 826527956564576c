"""`python -m trainer` is the `inkwash` command."""

import sys

from trainer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
