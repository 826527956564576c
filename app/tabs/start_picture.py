"""The Generate tab's picture to start from, with a mask that is drawn over it, and the larger second pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from app.fields import element_id, info, label
from app.form import Form
from app.messages import handler
from app.services.generation import GenerationService
from trainer.errors import ConfigError
from trainer.files import is_inside

_START = (("strength", "resize"), ("masked_area", "mask_padding"), ("mask_blur",), ("init_image", "mask"))
_LARGER = (("hires_scale", "hires_upscaler"), ("hires_strength", "hires_steps"))
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


class StartPicture:
    """Both accordions; `start` is the first, `upscaler` the choice of how a picture is enlarged. What is drawn is kept in the data folder; the form's fields name it."""

    def __init__(self, form: Form, service: GenerationService) -> None:
        self._form, self._service = form, service
        with gr.Accordion("Start from a picture", open=False, elem_id="gen-start-picture") as self.start:
            self._editor = gr.ImageEditor(
                type="filepath",
                format="png",
                image_mode="RGBA",
                sources=["upload", "clipboard"],
                transforms=[],
                brush=gr.Brush(default_size=40, colors=["#ffffff"], color_mode="fixed"),
                layers=False,
                height=420,
                label="Picture; paint over what is to be made anew (nothing painted: all of it)",
                elem_id="gen-editor",
            )
            with gr.Row():
                self._use = gr.Button("Start from this", size="sm", elem_id="gen-start-use")
                self._drop = gr.Button("Start from noise", size="sm", elem_id="gen-start-drop")
            self._drawn = gr.JSON(None, visible=False)
            self._place(_START)
        with gr.Accordion("Larger (hires fix)", open=False, elem_id="gen-larger"):
            self._place(_LARGER)

    def _place(self, rows: tuple[tuple[str, ...], ...]) -> None:
        for paths in rows:
            with gr.Row(equal_height=False):
                for path in paths:
                    if path == "hires_upscaler":
                        self._place_upscaler()
                    else:
                        self._form.place(path, min_width=150)

    def _place_upscaler(self) -> None:
        spec = self._form.specs["hires_upscaler"]
        shown = self._form.shown_first(spec.path)
        self.upscaler = self._form.adopt(
            spec.path,
            gr.Dropdown(
                [shown],
                value=shown,
                allow_custom_value=True,
                label=label(spec),
                info=info(spec),
                elem_id=element_id(spec.path, "gen"),
                interactive=True,
                min_width=150,
            ),
        )

    def upscalers(self) -> Any:
        """An update of the upscalers that can be chosen."""
        return gr.update(choices=self._service.upscalers())

    def wire(self, check: Callable[[Callable[..., Any]], None]) -> None:
        """Let what is drawn fill the fields; `check` lets an event check the form."""
        widgets = self._form.widgets
        outputs = [widgets["init_image"], widgets["mask"], widgets["masked_area"]]
        # An editor with a listener, or as the input of one (gradio 6.31), uploads itself over and over: the browser passes on
        # what it uploaded when the button was clicked.
        used = self._use.click(None, self._editor, self._drawn, js="drawn => drawn", **_QUIET)
        check(used.then(handler(self._keep), [self._drawn, widgets["masked_area"]], outputs, **_QUIET).success)
        nothing = (None, "", "", "whole picture")
        check(self._drop.click(lambda: nothing, None, [self._editor, *outputs], **_QUIET).success)

    def _keep(self, drawn: dict[str, Any] | None, area: str) -> tuple[str, str, str]:
        background = _uploaded((drawn or {}).get("background"))
        if background is None:
            raise ConfigError(
                "There is no picture in the editor.", fix="Drop one on it, or give the path of a file below."
            )
        layers = [path for layer in (drawn or {}).get("layers") or [] if (path := _uploaded(layer))]
        init, mask = self._service.keep_drawing(background, layers)
        return init, mask, area if mask else "whole picture"


def _uploaded(file: Any) -> Path | None:
    """The file that the browser says it has uploaded; None where there is none of that name."""
    path = Path(str(file["path"])) if isinstance(file, dict) and file.get("path") else None
    return path if path and is_inside(path, Path(get_upload_folder())) and path.is_file() else None
