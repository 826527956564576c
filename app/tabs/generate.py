"""The Generate tab: prompt, settings and a stack of LoRAs to pictures; each picture's recipe, and back to the form."""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from app import render
from app.fields import element_id, info, label
from app.form import Form
from app.links import Letter, Links
from app.messages import handler, note
from app.polling import Poll
from app.recipe_view import found_recipe
from app.services.context import Services
from app.services.generation import GenerationService
from app.services.jobs import JobRow
from app.stack_shown import SHOWN, with_shown
from app.tabs.galleries import made_gallery
from app.tabs.grid import GridPanel
from app.tabs.lora_settings import RowSettings
from app.tabs.lora_stack import LoraStackEditor, Row, new_row
from app.tabs.saved_stacks import SavedStacks
from app.tabs.stack_conflicts import StackConflicts
from app.tabs.start_picture import StartPicture
from trainer.config.base import Level
from trainer.config.fields import describe
from trainer.config.generate import GenerateConfig
from trainer.config.model import EMBEDDED_MODEL
from trainer.errors import ConfigError, Finding
from trainer.picture_texts import SUFFIXES
from trainer.runs import RunState

TITLE = "Generate"
_PREFIX = "gen"
_DRAFT = "generate-form"
_POLL_SECONDS = 1.0
_MAX_PICTURES = 60
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


class GenerateTab:
    """One page's Generate tab."""

    def __init__(self, services: Services, links: Links) -> None:
        self._service = GenerationService(services.data)
        self._services = services
        self._jobs = services.jobs
        self._settings = services.settings
        self._outputs = services.data.outputs
        self._links = links
        specs = [spec for spec in describe(GenerateConfig) if spec.path != "loras"]
        self._form = Form(specs, _PREFIX, self._first_values())
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=330):
                self._build_form()
            with gr.Column(scale=6, min_width=330):
                self._build_results()
        self._wire()

    def _first_values(self) -> dict[str, Any]:
        examples = self._service.example_prompts(EMBEDDED_MODEL)
        return {**self._service.base_values(EMBEDDED_MODEL), "prompt": examples[0] if examples else ""}

    def _build_form(self) -> None:
        form = self._form
        self._prompt: gr.Textbox = form.place("prompt", lines=3, placeholder="What the picture shows", info=None)
        form.place("negative_prompt", info=None, placeholder="What it should not show")
        self._stack = LoraStackEditor(self._service, self._links.tab, self._prompt)
        self._row_settings = RowSettings(self._service, self._stack)
        self._saved = SavedStacks(self._service, self._stack)
        self._conflicts = StackConflicts(self._services, self._service, self._stack)
        base = form.specs["base"]
        self._base = form.adopt(
            "base",
            gr.Dropdown(
                [],
                value=form.shown_first("base"),
                allow_custom_value=True,
                label=label(base),
                info=info(base),
                elem_id=element_id("base", _PREFIX),
                interactive=True,
            ),
        )
        for paths in (("width", "height"), ("num_inference_steps", "guidance_scale"), ("sampler", "count")):
            with gr.Row(equal_height=False):
                for path in paths:
                    form.place(path, min_width=150)
        form.place("seed")
        self._start_picture = StartPicture(form, self._service)
        with gr.Accordion("Advanced", open=False, elem_id="gen-advanced"):
            for spec in form.specs.values():
                if spec.level is Level.ADVANCED and spec.path not in {*form.fixed, *form.widgets}:
                    form.place(spec.path)
        with gr.Column(elem_classes=["start-bar"], min_width=200):
            self._problems = gr.HTML("", elem_id="gen-problems", padding=False)
            self._start = gr.Button("Generate", variant="primary", elem_id="gen-start")
        self._marked = gr.State([])

    def _build_results(self) -> None:
        self._chosen = gr.State(None)
        self._seen = gr.State({})
        self._recipe_settings = gr.State(None)
        self._paths = gr.State([])
        self._status = gr.HTML("", elem_id="gen-status", padding=False)
        self._preview = gr.HTML("", elem_id="gen-preview", padding=False)
        self._cancel = gr.Button("Cancel", elem_id="gen-cancel", visible=False, size="sm")
        self._gallery = made_gallery("gen-gallery", "Pictures")
        self._recipe = gr.HTML(
            '<div class="hint">Choose a picture to see how it was made.</div>', elem_id="gen-recipe", padding=False
        )
        self._back = gr.Button("Send recipe back to the form", elem_id="gen-back", visible=False, size="sm")
        self._dropped = gr.File(
            label="Drop a picture here to get its recipe back (Inkwash, A1111, Forge, ComfyUI)",
            file_types=list(SUFFIXES),
            elem_id="gen-drop",
            height=150,
        )
        self._grid = GridPanel(self._services, self._service)

    def _wire(self) -> None:
        form, links, stack = self._form, self._links, self._stack
        form.send_also(SHOWN, stack.shown_js)
        given = [self._marked, stack.rows, stack.version]
        marks = [self._problems, self._marked, *form.outputs()]

        def check(trigger: Callable[..., Any]) -> None:
            form.send(trigger, self._check, given, marks, trigger_mode="always_last", **_QUIET)

        stack.connect(form.widgets["num_inference_steps"])
        self._row_settings.wire()
        self._saved.wire()
        check(partial(gr.on, [*form.events(), stack.rows.change]))
        self._start_picture.wire(check)
        shown = [self._seen, self._status, self._preview, self._cancel, self._gallery, self._paths]
        timer = self._links.clock(_POLL_SECONDS)
        poll = Poll(links.page, timer, self._poll, [self._chosen, self._seen], shown)
        self._conflicts.wire(links.page, self._base, timer)
        self._grid.wire(
            form,
            [stack.rows, stack.version],
            self._now,
            links.page,
            timer,
            self._choose,
            [self._recipe, self._recipe_settings, self._back],
        )
        starts = partial(gr.on, [self._start.click, self._prompt.submit])
        poll.after(
            form.send(starts, self._begin, given, [*marks, self._chosen], trigger_mode="once", **_QUIET),
            self._cancel.click(handler(self._stop), self._chosen, None, **_QUIET),
        )
        check(self._base.input(handler(self._fill_base), self._base, form.outputs(), **_QUIET).success)
        letter = links.base_for_generate
        check(letter.change(handler(self._receive_base), letter, form.outputs(), **_QUIET).success)
        refill = [*form.outputs(), stack.rows, stack.version, self._start_picture.start]
        links.page.load(handler(self._fill_draft), {stack.version}, refill, **_QUIET)
        pickers = [self._base, stack.picker, self._saved.picker, self._start_picture.upscaler]
        links.on_show(self._refresh, None, pickers)
        self._gallery.select(
            handler(self._choose), self._paths, [self._recipe, self._recipe_settings, self._back], **_QUIET
        )
        self._back.click(handler(self._fill_recipe), {self._recipe_settings, stack.version}, refill, **_QUIET)
        self._dropped.upload(
            handler(self._read_dropped), self._dropped, [self._recipe, self._recipe_settings, self._back], **_QUIET
        ).success(handler(self._fill_recipe), {self._recipe_settings, stack.version}, refill, **_QUIET)
        links.recipe_for_generate.change(
            handler(self._receive_recipe), {links.recipe_for_generate, stack.version}, refill, **_QUIET
        )
        links.lora_for_generate.change(
            handler(self._receive_lora),
            [links.lora_for_generate, stack.rows, stack.version, self._prompt],
            [stack.rows, stack.version, self._prompt],
            **_QUIET,
        )

    def _receive_base(self, letter: Letter | None) -> Any:
        if not letter:
            return gr.skip()
        return self._form.fill(self._service.base_values(str(Letter(*letter).content)))

    def _refresh(self) -> tuple[Any, Any, Any, Any]:
        bases = [
            (f"{base.label}{' (cannot be used)' if base.problem else ''}", base.name) for base in self._service.bases()
        ]
        upscalers = self._start_picture.upscalers()
        return gr.update(choices=bases), self._stack.choices(), self._saved.choices(), upscalers

    def _values(self, raw: dict[Any, Any]) -> dict[str, Any]:
        return self._form.read(raw)

    def _now(self, raw: dict[Any, Any]) -> tuple[dict[str, Any], list[Row]]:
        """The settings and the stack as the page shows them; tags say what was set by a slider."""
        values, rows = self._values(raw), raw[self._stack.rows]
        if raw[SHOWN]:
            rows = with_shown(rows, raw[self._stack.version], raw[SHOWN])
            steps = values.get("num_inference_steps")
            values["prompt"] = self._service.prompt_of_rows(str(values.get("prompt", "")), rows, steps)
        return values, rows

    def _check(self, raw: dict[Any, Any]) -> dict[Any, Any]:
        values, rows = self._values(raw), raw[self._stack.rows]
        self._settings.keep(_DRAFT, {"values": values, "rows": rows})
        try:
            self._service.check(values, rows)
        except ConfigError as error:
            return self._show(list(error.findings), raw[self._marked])
        return self._show([], raw[self._marked])

    def _show(self, findings: list[Finding], marked: list[str]) -> dict[Any, Any]:
        updates, now_marked = self._form.mark(findings, marked)
        summary = html.escape(self._form.summary(findings)).replace("\n", "<br>")
        problems = f'<div class="problems">{summary}</div>' if findings else ""
        return {self._problems: problems, self._marked: now_marked, **updates}

    def _begin(self, raw: dict[Any, Any]) -> dict[Any, Any]:
        values, rows = self._now(raw)
        try:
            config = self._service.check(values, rows)
        except ConfigError as error:
            gr.Warning("Some settings need attention before pictures can be made.", duration=6)
            return self._show(list(error.findings), raw[self._marked])
        run_id = self._service.start(config)
        self._settings.save(_DRAFT, {"values": values, "rows": rows})
        return {**self._show([], raw[self._marked]), self._chosen: run_id}

    def _stop(self, run_id: str | None) -> None:
        current = run_id or self._jobs.newest("generate")
        if current:
            self._jobs.stop(current)

    def _poll(self, chosen: str | None, seen: dict[str, Any]) -> Any:
        ids = self._jobs.ids("generate")
        run_id = chosen if chosen in ids else self._jobs.newest("generate")
        row = self._jobs.row(run_id) if run_id else None
        history = self._jobs.history(run_id) if run_id else None
        pictures = self._pictures(ids)
        now = {
            "run": [run_id, row.state.value, history.num_events] if row and history else [],
            "pictures": [str(path) for path in pictures],
        }
        if now == seen:
            return gr.skip()
        updates: dict[Any, Any] = {self._seen: now}
        if now["run"] != seen.get("run") and row and history:
            is_open = row.state is RunState.QUEUED or row.state.is_active
            updates |= {
                self._status: self._progress(row),
                self._preview: render.preview(history) if row.state is RunState.RUNNING else "",
                self._cancel: gr.update(visible=is_open),
            }
        if now["pictures"] != seen.get("pictures"):
            updates |= {self._gallery: [str(path) for path in pictures], self._paths: now["pictures"]}
        return updates

    def _progress(self, row: JobRow) -> str:
        """Only what goes on or went wrong: pictures speak for a generation that ended well."""
        if row.state is RunState.FINISHED:
            return ""
        history = self._jobs.history(row.id)
        stage = history.stage
        done = render.bar(stage.done, stage.total) if stage and stage.total and row.state is RunState.RUNNING else ""
        return render.status_line(row, history) + done

    def _pictures(self, ids: list[str]) -> list[Path]:
        """The latest pictures, newest run first, that still are in the outputs folder."""
        found: list[Path] = []
        for run_id in ids:
            made = self._jobs.pictures(run_id)
            found += [path for path in made if path.is_relative_to(self._outputs) and path.is_file()]
            if len(found) >= _MAX_PICTURES:
                break
        return found[:_MAX_PICTURES]

    def _choose(self, paths: list[str], event: gr.SelectData) -> tuple[Any, Any, Any]:
        index = event.index if isinstance(event.index, int) else event.index[0]
        if not 0 <= index < len(paths):
            return gr.skip(), gr.skip(), gr.skip()
        found, reason = self._service.recipe_or_reason(Path(paths[index]))
        if found is None:
            return f'<div class="hint">{render.text(reason)}</div>', None, gr.update(visible=False)
        name = f'<div class="hint">{render.text(Path(paths[index]).name)}</div>'
        return name + found_recipe(found), found.settings, gr.update(visible=True)

    def _read_dropped(self, path: str | None) -> tuple[Any, Any, Any]:
        if not path:
            return gr.skip(), gr.skip(), gr.skip()
        found = self._service.found_recipe(Path(path))
        return found_recipe(found), found.settings, gr.update(visible=True)

    def _fill(self, settings: dict[str, Any], version: int) -> dict[Any, Any]:
        values, stack, missing = self._service.split(settings)
        if missing:
            gr.Warning(f"Not in the library, so left off: {html.escape(', '.join(missing))}", duration=10)
        filled: dict[Any, Any] = {**self._form.fill(values)}
        if values.get("init_image"):
            filled[self._start_picture.start] = gr.update(open=True)
        if "loras" not in settings:
            return filled
        rows = [new_row(**entry) for entry in stack]
        return {**filled, self._stack.rows: rows, self._stack.version: version + 1}

    def _fill_recipe(self, raw: dict[Any, Any]) -> Any:
        settings = raw[self._recipe_settings]
        if not settings:
            return gr.skip()
        note("The recipe is in the form.")
        return self._fill(settings, raw[self._stack.version])

    def _receive_recipe(self, raw: dict[Any, Any]) -> Any:
        letter = raw[self._links.recipe_for_generate]
        return self._fill(Letter(*letter).content, raw[self._stack.version]) if letter else gr.skip()

    def _receive_lora(self, letter: Any, rows: list[Row], version: int, prompt: str) -> tuple[Any, Any, Any]:
        if not letter:
            return gr.skip(), gr.skip(), gr.skip()
        name = self._service.find_lora(str(Letter(*letter).content))
        if name is None:
            note("This LoRA is not in the library.")
            return gr.skip(), gr.skip(), gr.skip()
        if any(row["name"] == name for row in rows):
            return gr.skip(), gr.skip(), gr.skip()
        words = self._service.trigger_words(name)
        has_word = any(word in prompt for word in words)
        new_prompt = prompt if has_word or not words else ", ".join(part for part in (words[0], prompt) if part.strip())
        return [*rows, new_row(name)], version + 1, new_prompt

    def _fill_base(self, name: str | None) -> Any:
        values = self._service.base_values(name or "")
        return self._form.fill({path: value for path, value in values.items() if path != "base"}) or gr.skip()

    def _fill_draft(self, raw: dict[Any, Any]) -> Any:
        draft = self._settings.get(_DRAFT)
        if not isinstance(draft, dict) or not isinstance(draft.get("values"), dict):
            return gr.skip()
        names = {entry.name for entry in self._service.loras()}
        rows = [new_row(**row) for row in draft.get("rows", []) if isinstance(row, dict) and row.get("name") in names]
        filled = self._form.fill(draft["values"])
        return {**filled, self._stack.rows: rows, self._stack.version: raw[self._stack.version] + 1}


def build(services: Services, links: Links) -> None:
    """Lay out and wire the tab."""
    GenerateTab(services, links)
