"""What the app remembers between starts: small JSON values in the data folder."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

from trainer.files import write_json
from trainer.paths import DataFolder

log = logging.getLogger(__name__)


class SettingsStore:
    """Named values; a damaged file is set aside, not an error: nothing in it is more than convenience."""

    def __init__(self, data: DataFolder) -> None:
        self._path = data.root / "settings.json"
        self._lock = threading.Lock()
        self._values = self._load()

    def _load(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            log.warning("The app's settings cannot be read and start anew: %s", self._path)
            if self._path.is_file():
                self._path.replace(self._path.with_suffix(".damaged"))
            return {}
        return values if isinstance(values, dict) else {}

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default`."""
        return self._values.get(name, default)

    def keep(self, name: str, value: Any) -> None:
        """Remember until the app ends."""
        with self._lock:
            self._values[name] = value

    def save(self, name: str, value: Any) -> None:
        """Remember, and write to the disk."""
        with self._lock:
            self._values[name] = value
            write_json(self._path, self._values, "the app's settings")
