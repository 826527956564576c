"""The parts that a plain LoRA has for each module."""

from __future__ import annotations

from typing import Literal

Part = Literal["down", "up", "alpha"]
