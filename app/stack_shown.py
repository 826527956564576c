"""What the page shows of a stack of LoRAs in the moment of an event.

A slider tells the app of its new value a moment after it was moved, on a busy machine a second or more. Whoever moves a
weight and clicks Generate at once means what is seen, so the click brings along what the sliders say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from app.services.stack_rows import Row, with_value

SHOWN = "shown"
"""Under which name a form's handler is given what `shown_js` gave."""
PROMPT_ID = "gen-prompt"
HEAD = f"""<script>
{{
  // Prompt and sliders are two handles on the same weights: which of them was moved last?
  addEventListener("input", event => {{
    if (!(event.target instanceof Element)) return;
    if (event.target.closest("#{PROMPT_ID}")) window.inkwashStackMoved = false;
    if (event.target.closest(".lora-row")) window.inkwashStackMoved = true;
  }}, true);
}}
</script>"""
"""For the head of the page."""

ROW_KEYS = ("on", "unet", "text")
SETTINGS_KEYS = ("start", "end")
SETTINGS_ID = "lora-settings"


def mark(row_id: str, version: int) -> str:
    """The class of what shows a row: of which one, and as of which version of the stack it was drawn."""
    return f"shows-{row_id}-{version}"


def shown_js(prefix: str, *, has_prompt: bool) -> str:
    """A function for the browser: what the widgets of each row say, as [its mark, its values by key].

    Where there is a prompt which was typed in last, its tags are what counts, and nothing is sent.

    Args:
        prefix: of the HTML ids.
    """
    moved = "window.inkwashStackMoved" if has_prompt else "true"
    return f"""() => {{
      if (!({moved})) return [];
      const said = (place, keys) => Object.fromEntries(keys.map(key => {{
        const box = place.querySelector(`[id^="{prefix}-${{key}}"] input[type=number], [id^="{prefix}-${{key}}"] input[type=checkbox]`);
        return [key, box && (box.type === "checkbox" ? box.checked : box.valueAsNumber)];
      }}));
      const marked = place => [...place.classList].find(name => name.startsWith("shows-"));
      const rows = [...document.querySelectorAll('.lora-row[id^="{prefix}-row-"]')]
        .map(row => [marked(row), said(row, {list(ROW_KEYS)})]);
      const title = document.querySelector('#{SETTINGS_ID} [class*="shows-"]');
      return title && {str(has_prompt).lower()}
        ? [...rows, [marked(title), said(document.querySelector("#{SETTINGS_ID}"), {list(SETTINGS_KEYS)})]]
        : rows;
    }}"""


def with_shown(rows: Sequence[Row], version: int, shown: Any) -> list[Row]:
    """The stack with what its widgets say.

    Args:
        rows, version: as the app has them.
        shown: what `shown_js` gave. Of rows that were drawn before the stack changed otherwise, nothing is taken.
    """
    result = list(rows)
    for place, said in shown or ():
        row = next((row for row in result if place == mark(row["id"], version)), None)
        if row is None:
            continue
        for key in (*ROW_KEYS, *SETTINGS_KEYS):
            value = said.get(key)
            is_number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
            if isinstance(value, bool) if key == "on" else is_number:
                result = with_value(result, row["id"], key, value)
    return result
