"""`python -m app.main`: the app. The page is in `app.page`, the server in `app.server`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from trainer.errors import InkwashError


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Returns the exit code."""
    from app import server

    try:
        options = server.parse(argv)
        # What is made until the page answers stays for good, and looking for garbage in it took a sixth of the time.
        gc.disable()
        from app.page import build_page

        return server.run(options, build_page)
    except InkwashError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
