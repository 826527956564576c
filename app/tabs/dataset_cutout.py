"""The part of the Prepare section that lets a segmentation model make masks: a job, followed here and in the Jobs tab."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import render
from app.messages import handler
from app.services.context import Services
from app.services.jobs import History, JobRow
from app.tabs.dataset_page import DatasetPage, news
from app.tabs.job_follower import JobFollower
from trainer.base_models.download import start_download
from trainer.dataset.cutout_job import MasksRequest, start_masks
from trainer.errors import ConfigError

_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}


class CutoutPanel:
    """One page's accordion."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._data = services.data
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
        self._job = JobFollower(
            services.jobs, self._status, self._cancel, "It stops; the masks that are made are kept.", _said
        )
        self._start.click(
            handler(self._begin),
            [page.choice, self._model],
            self._job.parts,
            trigger_mode="once",
            show_progress="hidden",
        )
        self._fetch.click(handler(self._download), self._model, self._job.parts, show_progress="hidden")
        self._job.wire(lambda row, history: {page.changed: news()}, outputs=[page.changed])

    def _begin(self, name: str | None, model: str) -> dict[Any, Any]:
        if not name or not model.strip():
            raise ConfigError(
                "No model is named." if name else "No data set is chosen.", fix="Give the path of an .onnx file."
            )
        return self._job.follow(start_masks(self._data, MasksRequest(dataset=name, model=model.strip())).id)

    def _download(self, model: str) -> dict[Any, Any]:
        return self._job.follow(start_download(self._data, model.strip(), "", "segmentation").id)


def _said(row: JobRow, history: History) -> str:
    summary = render.text((history.result or {}).get("summary", ""))
    return render.status(row, history) + (f'<div class="hint">{summary}</div>' if summary else "")
