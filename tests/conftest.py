"""How tests are spread over processes."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file goes to one process, for what its tests share is made once; all of the browser's go to the same one, or two pages would
    take each other's time."""
    from xdist.scheduler import LoadFileScheduling

    class BrowserInOne(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/browser" if file.startswith("tests/browser/") else file

    return BrowserInOne(config, log) if config.getvalue("dist") == "loadfile" else None
