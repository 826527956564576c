"""The Models tab: the base models there are, what each is, the folders of other programs, and downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from app import render
from app.links import Links, send
from app.messages import handler, note
from app.polling import Poll
from app.services.context import Services
from app.services.models import ModelService, Place, predicts
from trainer.base_models import BaseModelInfo
from trainer.config.download import DownloadConfig
from trainer.errors import ConfigError
from trainer.units import size

TITLE = "Models"
_HEADERS = ["Model", "Family", "Predicts", "Precision", "Size"]
_POLL_SECONDS = 1.0
_REPORT_SECONDS = 0.2
_MAX_ROWS = 1000
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}


class ModelsTab:
    """One page's Models tab. The chosen model's name lives in the browser."""

    def __init__(self, services: Services, links: Links) -> None:
        self._service = ModelService(services.data)
        self._jobs = services.jobs
        self._links = links
        self._names = gr.State([])
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=310):
                self._lay_out_list(str(services.data.models))
            with gr.Column(scale=3, min_width=310):
                self._lay_out_details()
                self._lay_out_places()
                self._lay_out_download()
        self._wire()

    def _lay_out_list(self, folder: str) -> None:
        self._search = gr.Textbox(
            "",
            show_label=False,
            placeholder="Search by name, family or folder",
            elem_id="model-search",
            container=False,
        )
        self._summary = gr.HTML("", elem_id="model-summary", padding=False)
        self._table = gr.Dataframe(
            headers=_HEADERS,
            value=[],
            interactive=False,
            elem_id="model-table",
            elem_classes="row-table",
            max_height=560,
            show_label=False,
            column_widths=["230px", "165px", "165px", "90px", "80px"],
            buttons=[],
        )
        gr.HTML(
            f'<div class="hint">Put a .safetensors file or a diffusers folder into {render.text(folder)}, or use another '
            "program's models where they are. Upscaling models for the hires fix go into the folder upscalers beside it.</div>",
            padding=False,
        )

    def _lay_out_details(self) -> None:
        self._chosen = gr.Textbox("", elem_id="model-chosen", elem_classes="kept-in-browser")
        with gr.Column(visible=False, elem_id="model-details") as self._details:
            self._about = gr.HTML("", elem_id="model-about", padding=False)
            with gr.Row():
                self._train = gr.Button("Train on it →", variant="primary", elem_id="model-train", **_SMALL)
                self._generate = gr.Button("Generate with it →", elem_id="model-generate", **_SMALL)
                self._hash = gr.Button("Compute its hash", elem_id="model-hash", **_SMALL)

    def _lay_out_places(self) -> None:
        with gr.Accordion("Use another program's models", open=False, elem_id="model-places"):
            gr.HTML(
                '<div class="hint">The folder that A1111, Forge or ComfyUI is installed in, or any folder of models. '
                "Nothing is copied, and nothing is written there.</div>",
                padding=False,
            )
            with gr.Row():
                self._folder = gr.Textbox("", label="Folder on this machine", elem_id="model-folder", max_length=1000)
                self._add = gr.Button("Add", elem_id="model-folder-add", scale=0, **_SMALL)
            self._progress = gr.HTML("", elem_id="model-progress", padding=False)
            with gr.Row(visible=False) as self._known:
                self._place = gr.Dropdown([], label="Folders in use", elem_id="model-place", interactive=True)
                self._forget = gr.Button("Forget", elem_id="model-folder-forget", scale=0, **_SMALL)

    def _lay_out_download(self) -> None:
        with gr.Accordion("Download from Hugging Face", open=False, elem_id="model-download"):
            gr.HTML(
                '<div class="hint">Models in diffusers\' format, by their id. Nothing is downloaded but what you ask for '
                "here.</div>",
                padding=False,
            )
            fields = DownloadConfig.model_fields
            self._id = gr.Textbox(
                "", label="Model", info=fields["model_id"].description, placeholder="owner/name", elem_id="model-id"
            )
            self._variant = gr.Dropdown(
                [("full", ""), "fp16", "bf16"],
                value="",
                label="Number format",
                info=fields["variant"].description,
                elem_id="model-variant",
                interactive=True,
            )
            with gr.Row():
                self._fetch = gr.Button("Download", elem_id="model-fetch", **_SMALL)
                self._cancel = gr.Button("Cancel", elem_id="model-cancel", visible=False, **_SMALL)
            self._job = gr.State(None)
            self._seen = gr.State(None)
            self._status = gr.HTML("", elem_id="model-status", padding=False)

    def _wire(self) -> None:
        hidden: dict[str, Any] = {"show_progress": "hidden"}
        listed = [self._table, self._names, self._summary, self._known, self._place]
        details = [self._details, self._about, self._chosen, self._train, self._generate, self._hash]
        self._links.on_show(self._list, [self._search], listed)
        self._search.change(handler(self._list), self._search, listed, **_QUIET)
        self._table.select(handler(self._choose), self._names, details, **hidden)
        for button, mailbox, tab in (
            (self._train, self._links.base_for_train, "train"),
            (self._generate, self._links.base_for_generate, "generate"),
        ):
            button.click(
                lambda name, tab=tab: send(name, tab),
                self._chosen,
                [mailbox, self._links.tabs],
                show_progress="hidden",
            )
        self._hash.click(handler(self._compute), self._chosen, [self._progress, *details], **hidden)
        for event in (self._add.click, self._folder.submit):
            event(
                handler(self._add_folder),
                [self._folder, self._search],
                [self._progress, self._folder, *listed],
                **hidden,
            )
        self._forget.click(handler(self._forget_folder), [self._place, self._search], listed, **hidden)
        inputs = [self._job, self._seen, self._search]
        shown = [self._job, self._seen, self._status, self._cancel, *listed]
        poll = Poll(self._links.page, self._links.clock(_POLL_SECONDS), self._poll, inputs, shown)
        for event in (self._fetch.click, self._id.submit):
            poll.after(event(handler(self._download), [self._id, self._variant], self._job, **hidden))
        poll.after(self._cancel.click(handler(self._stop), self._job, None, **_QUIET))

    # --- what the user does --------------------------------------------------------------------------------------

    def _list(self, search: str) -> dict[Any, Any]:
        models, places = self._service.overview(search or "")
        choices = [(f"{place.folder} ({place.count})", str(place.folder)) for place in places]
        return {
            self._table: gr.update(value=[_cells(model) for model in models[:_MAX_ROWS]]),
            self._names: [model.name for model in models[:_MAX_ROWS]],
            self._summary: _summary(models, search or ""),
            self._known: gr.update(visible=bool(places)),
            self._place: gr.update(choices=choices, value=choices[0][1] if choices else None),
        }

    def _choose(self, names: list[str], event: gr.SelectData) -> Any:
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        return self._show(names[index]) if 0 <= index < len(names) else gr.skip()

    def _compute(self, name: str) -> Iterator[dict[Any, Any]]:
        model = self._service.model(name)
        for done, total in _followed(lambda progress: self._service.compute_hash(model, progress)):
            yield {self._progress: _progress("Reading the file", size(done), size(total), done, total)}
        yield {self._progress: "", **self._show(name)}

    def _add_folder(self, folder: str, search: str) -> Iterator[dict[Any, Any]]:
        if not folder.strip():
            raise ConfigError("Name a folder first.", where="Folder on this machine")
        found: list[Place] = []
        for done, total in _followed(lambda progress: found.append(self._service.add_place(folder.strip(), progress))):
            yield {self._progress: _progress("Looking at the models", str(done), str(total), done, total)}
        note(f"{found[0].count} {'model' if found[0].count == 1 else 'models'} found there.")
        yield {self._progress: "", self._folder: "", **self._list(search)}

    def _forget_folder(self, folder: str | None, search: str) -> dict[Any, Any]:
        self._service.remove_place(folder or "")
        return self._list(search)

    def _download(self, model_id: str, variant: str | None) -> str:
        return self._service.download(model_id.strip(), variant or "")

    def _stop(self, job: str | None) -> None:
        if job:
            self._jobs.stop(job)
            note("It stops; what has arrived is kept for the next time.")

    # --- showing -------------------------------------------------------------------------------------------------

    def _show(self, name: str) -> dict[Any, Any]:
        model = self._service.model(name)
        return {
            self._details: gr.update(visible=True),
            self._about: self._about_html(model),
            self._chosen: name,
            self._train: gr.update(interactive=not model.training_problem),
            self._generate: gr.update(interactive=not model.problem),
            self._hash: gr.update(visible=not self._service.has_hash(model)),
        }

    def _about_html(self, model: BaseModelInfo) -> str:
        problem = f'<div class="run-error">{render.text(model.problem)}</div>' if model.problem else ""
        if model.training_problem and not model.problem:
            problem = f'<div class="hint">{render.text(model.training_problem)}</div>'
        about = f'<div class="hint">{render.text(model.description)}</div>' if model.description else ""
        title = f'<div class="section-title">{render.text(model.title)}</div>'
        return f"{title}{about}{problem}{render.definitions(self._service.facts(model))}"

    def _poll(self, job: str | None, seen: Any, search: str) -> Any:
        job = job or self._jobs.newest("download")
        if not job:
            return gr.skip()
        row, history = self._jobs.row(job), self._jobs.history(job)
        now = [job, row.state.value, history.num_events]
        if now == seen:
            return gr.skip()
        updates: dict[Any, Any] = {
            self._job: job,
            self._seen: now,
            self._status: render.status(row, history),
            self._cancel: gr.update(visible=not row.state.is_over),
        }
        # What has arrived belongs in the list; on the page's first look it is there already.
        return {**updates, **self._list(search)} if seen and row.state.is_over else updates


def _followed(work: Callable[[Callable[[int, int], None]], Any]) -> Iterator[tuple[int, int]]:
    """Do `work(progress)` in a thread, and yield the newest that it reported a few times a second. Raises what it raised."""
    newest: list[tuple[int, int]] = []
    failures: list[BaseException] = []
    is_over = threading.Event()

    def run() -> None:
        try:
            work(lambda done, total: newest.append((done, total)))
        except BaseException as error:
            failures.append(error)
        finally:
            is_over.set()

    threading.Thread(target=run, daemon=True).start()
    while not is_over.wait(_REPORT_SECONDS):
        if newest:
            newest[:] = newest[-1:]
            yield newest[-1]
    if failures:
        raise failures[0]


def _progress(what: str, done: str, total: str, share: float, whole: float) -> str:
    return f'<div class="stage">{what}: {done} of {total}</div>{render.bar(share, whole)}'


def _cells(model: BaseModelInfo) -> list[str]:
    if model.problem:
        return [model.title, "cannot be used", "", model.precision, size(model.size_bytes)]
    return [model.title, model.kind, predicts(model), model.precision, size(model.size_bytes)]


def _summary(models: list[BaseModelInfo], search: str) -> str:
    if models:
        total = size(sum(model.size_bytes for model in models))
        more = f"; the first {_MAX_ROWS} are shown" if len(models) > _MAX_ROWS else ""
        return f'<div class="plan-line">{len(models)} {"model" if len(models) == 1 else "models"}, {total}{more}</div>'
    return render.empty("No model has these words." if search.strip() else "No models yet.")


def build(services: Services, links: Links) -> ModelsTab:
    """Lay the tab out."""
    return ModelsTab(services, links)
