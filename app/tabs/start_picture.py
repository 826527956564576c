"""The Generate tab's picture to start from, with its mask, and the larger second pass."""

from __future__ import annotations

import gradio as gr

from app.form import Form

_START = (("init_image", "mask"), ("strength", "resize"), ("masked_area", "mask_padding"), ("mask_blur",))
_LARGER = (("hires_scale", "hires_upscaler"), ("hires_strength", "hires_steps"))


class StartPicture:
    """Both accordions; `start` is the first."""

    def __init__(self, form: Form) -> None:
        self._form = form
        with gr.Accordion("Start from a picture", open=False, elem_id="gen-start-picture") as self.start:
            self._place(_START)
        with gr.Accordion("Larger (hires fix)", open=False, elem_id="gen-larger"):
            self._place(_LARGER)

    def _place(self, rows: tuple[tuple[str, ...], ...]) -> None:
        for paths in rows:
            with gr.Row(equal_height=False):
                for path in paths:
                    self._form.place(path, min_width=150)
