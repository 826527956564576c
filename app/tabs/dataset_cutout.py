"""The part of the Prepare section that lets a segmentation model make masks: a job, followed here and in the Jobs tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.context import Services
from app.tabs.dataset_page import DatasetPage, news
from trainer.base_models.download import start_download
from trainer.dataset.cutout_job import MasksRequest, start_masks
from trainer.errors import ConfigError

_POLL_SECONDS = 1.0
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


class CutoutPanel:
    """One page's accordion."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._data, self._jobs, self._page = services.data, services.jobs, page
        with gr.Accordion("Masks by a model", open=False, elem_id="prepare-cutout"):
            self._model = gr.Textbox(
                "",
                label="Segmentation model",
                info="An .onnx file of the U²-Net, IS-Net or BiRefNet kind, a folder with one, or a Hugging Face id that was "
                "downloaded. Pictures that have a mask keep it.",
                elem_id="prepare-cutout-model",
                max_length=1000,
            )
            with gr.Row():
                self._start = gr.Button("Make masks", variant="primary", elem_id="prepare-cutout-start", **_SMALL)
                self._fetch = gr.Button("Download this id", elem_id="prepare-cutout-fetch", **_SMALL)
                self._cancel = gr.Button("Stop", visible=False, elem_id="prepare-cutout-cancel", **_SMALL)
            self._status = gr.HTML("", elem_id="prepare-cutout-status", padding=False)
        self._run, self._seen = gr.State(""), gr.State([])
        # Ticks only while a run is followed.
        self._clock = gr.Timer(_POLL_SECONDS, active=False)
        followed = [self._run, self._seen, self._clock, self._cancel, self._status]
        self._start.click(
            handler(self._begin), [page.choice, self._model], followed, trigger_mode="once", show_progress="hidden"
        )
        self._fetch.click(handler(self._download), self._model, followed, **_QUIET)
        self._cancel.click(handler(self._stop), self._run, None, **_QUIET)
        self._clock.tick(
            handler(self._poll), [self._run, self._seen], [*followed[1:], page.changed], show_progress="hidden"
        )

    def _begin(self, name: str | None, model: str) -> dict[Any, Any]:
        if not name or not model.strip():
            raise ConfigError(
                "No model is named." if name else "No data set is chosen.", fix="Give the path of an .onnx file."
            )
        return self._follow(start_masks(self._data, MasksRequest(dataset=name, model=model.strip())).id)

    def _download(self, model: str) -> dict[Any, Any]:
        return self._follow(start_download(self._data, model.strip(), "", "segmentation").id)

    def _follow(self, run_id: str) -> dict[Any, Any]:
        return {
            self._run: run_id,
            self._seen: [],
            self._clock: gr.Timer(active=True),
            self._cancel: gr.update(visible=True),
            self._status: '<div class="hint">Waiting for its turn…</div>',
        }

    def _stop(self, run_id: str) -> None:
        self._jobs.stop(run_id)
        note("It stops; nothing is changed.")

    def _poll(self, run_id: str, seen: list[Any]) -> Any:
        if not run_id:
            return {self._clock: gr.Timer(active=False)}
        row, history = self._jobs.row(run_id), self._jobs.history(run_id)
        now = [run_id, row.state.value, history.num_events]
        if now == seen:
            return gr.skip()
        said = str((history.result or {}).get("summary", "")) if row.state.is_over else ""
        updates: dict[Any, Any] = {
            self._seen: now,
            self._status: render.status(row, history)
            + (f'<div class="hint">{render.text(said)}</div>' if said else ""),
        }
        if row.state.is_over:
            updates |= {self._clock: gr.Timer(active=False), self._cancel: gr.update(visible=False)}
            updates[self._page.changed] = news()
        return updates
