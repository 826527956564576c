"""`python -m app.main`: the app. The page is in `app.page`, the server in `app.server`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.errors import InkwashError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    from app import server

    try:
        return server.run(server.parse(argv))
    except InkwashError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
