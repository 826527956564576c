"""Tells gradio of every change of a text."""

from __future__ import annotations

_TEXTS = '[data-testid="textbox"]'

HEAD = f"""<script>
{{
  // Gradio 6.31's Textbox says `input` when a key is pressed that makes a character, and never of what is pasted, cut, rubbed
  // out, undone, dictated or put there by a script. Here it hears of a key whenever the text has changed.
  const isText = event => event.target instanceof Element && event.target.matches('{_TEXTS}');
  const tell = event => event.target.dispatchEvent(new KeyboardEvent("keypress", {{bubbles: true, key: "Unidentified"}}));
  addEventListener("keypress", event => {{
    // Enter passes: it may send the text.
    if (event.isTrusted && event.key !== "Enter" && isText(event)) event.stopPropagation();
  }}, true);
  // While a character is composed of several keys, the text is not yet what is meant.
  addEventListener("input", event => {{ if (isText(event) && !event.isComposing) tell(event); }});
  addEventListener("compositionend", event => {{ if (isText(event)) tell(event); }});
}}
</script>"""
"""For the head of the page."""
