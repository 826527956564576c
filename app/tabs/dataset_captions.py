"""The captions of a data set: pictures beside their captions to write, tags to filter by, and changes of all that is shown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from app.messages import handler, note
from app.services.captions import EDITS, ORDERS, CaptionPage, CaptionQuery, CaptionService
from app.services.context import Services
from app.services.datasets import DatasetService
from app.tabs import captions_html
from app.tabs.dataset_page import DatasetPage, news
from app.tabs.pager import Pager
from trainer.errors import InkwashError

TITLE = "Captions"
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
_PICK = """element.addEventListener('click', (event) => {
  const chip = event.target.closest('.tag-chip');
  if (chip) trigger('pick', {tag: chip.dataset.tag});
});"""
_MAX_TYPED = 100_000
_SUMMARY_UP_TO = 500
"""Pictures of a set whose summary is written anew after each caption; of larger ones it would take longer than typing."""


class CaptionsSection:
    """What is chosen lives in the page's session, what is typed in the browser until it is saved."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._service = CaptionService(services.data)
        self._datasets = DatasetService(services.data)
        self._shared = page
        self._choice = page.choice
        self._query = gr.State(CaptionQuery())
        self._lay_out_filter()
        self._lay_out_rows()
        self._lay_out_edits()
        self._lay_out_files()
        page.on_show(self._show_anew, [self._query, self._base], self._anew, show_progress_on=[self._grid])
        if page.section is not None:
            page.section.select(handler(self._offer_bases), self._base, self._base, **_QUIET)
        self._wire_filter()
        self._wire_rows()
        self._wire_edits()
        self._wire_files()

    def _lay_out_filter(self) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=180):
                self._text = gr.Textbox(
                    "",
                    label="Captions with",
                    placeholder="words to look for",
                    elem_id="captions-text",
                    max_length=500,
                )
                self._is_regex = gr.Checkbox(False, label="Regular expression", elem_id="captions-regex")
            self._order = gr.Dropdown(
                list(ORDERS), value="name", label="Order", elem_id="captions-order", scale=2, interactive=True
            )
            self._base = gr.Dropdown(
                [("Embedded model", "")],
                value="",
                label="Tokens of",
                info="The base model whose tokenizer counts.",
                elem_id="captions-base",
                scale=2,
                interactive=True,
            )
        with gr.Accordion("Tags", open=True, elem_id="captions-tags-open"):
            self._tag_search = gr.Textbox(
                "",
                show_label=False,
                placeholder="Find a tag",
                elem_id="captions-tag-search",
                max_length=100,
                container=False,
            )
            self._tags = gr.HTML("", js_on_load=_PICK, elem_id="captions-tags", padding=False)
            gr.HTML(
                '<div class="hint">Click a tag for the pictures with it, again for those without it, once more for all.</div>',
                padding=False,
            )

    def _lay_out_rows(self) -> None:
        self._found = gr.HTML("", elem_id="captions-found", padding=False)
        self._grid = gr.HTML(
            "",
            js_on_load=_SCRIPT,
            server_functions=[self._server_save(), self._server_count()],
            elem_id="captions-grid",
            padding=False,
        )
        self._pager = Pager("captions")
        gr.HTML(
            '<div class="hint">One caption a line; a picture may have several. Saved when you leave the field or press Ctrl+S. '
            "PageDown and PageUp, or the arrow keys at the end and the beginning, go on to the next picture.</div>",
            padding=False,
        )

    def _lay_out_edits(self) -> None:
        with gr.Accordion("Change all captions that are shown", open=False, elem_id="captions-edit-open"):
            self._action = gr.Dropdown(
                [(title, action) for action, title in EDITS.items()],
                value="rename",
                label="What to do",
                info="With all pictures that the filter finds, on every page. Undo takes it back.",
                elem_id="captions-action",
                interactive=True,
            )
            with gr.Row():
                self._what = gr.Textbox(
                    "", label="Tags, or what to find", placeholder="red hat, crimson hat", elem_id="captions-what"
                )
                self._new = gr.Textbox(
                    "",
                    label="New name, or what to put in its place",
                    placeholder="red hat",
                    elem_id="captions-new",
                )
            with gr.Row():
                self._edit_regex = gr.Checkbox(
                    False,
                    label="Find a regular expression",
                    info=r"The replacement may have \1 and \g<name>.",
                    elem_id="captions-edit-regex",
                )
                self._case = gr.Checkbox(
                    False, label="Tell upper from lower case when finding", elem_id="captions-edit-case"
                )
            with gr.Row():
                self._preview = gr.Button("Preview", elem_id="captions-preview", **_SMALL)
                self._apply = gr.Button("Change them", variant="primary", elem_id="captions-apply", **_SMALL)
            self._planned = gr.HTML("", elem_id="captions-plan", padding=False)

    def _lay_out_files(self) -> None:
        with gr.Accordion("Caption files beside the pictures", open=False, elem_id="captions-files-open"):
            self._overwrite = gr.Checkbox(
                False,
                label="Replace files that say something else",
                info="Copies of them go to the trash folder first.",
                elem_id="captions-overwrite",
            )
            with gr.Row():
                self._compare = gr.Button("Compare", elem_id="captions-compare", **_SMALL)
                self._export = gr.Button("Write .txt files", variant="primary", elem_id="captions-export", **_SMALL)
                self._take = gr.Button("Take the files' captions", elem_id="captions-take", **_SMALL)
            self._differences = gr.HTML("", elem_id="captions-differences", padding=False)

    # --- showing -------------------------------------------------------------------------------------------------

    @property
    def _parts(self) -> list[Any]:
        return [self._query, self._grid, self._tags, self._found, *self._pager.parts]

    @property
    def _refiltered(self) -> list[Any]:
        """Outputs of what finds other pictures than before: the preview of a change was about those."""
        return [*self._parts, self._planned]

    @property
    def _anew(self) -> list[Any]:
        return [*self._refiltered, self._differences]

    def _show_anew(self, name: str, query: CaptionQuery, base: str) -> dict[Any, Any]:
        """After another data set was chosen, or the captions were changed: no list of before stays."""
        return {self._planned: "", self._differences: "", **self._show(name, query, base)}

    def _show(self, name: str, query: CaptionQuery, base: str) -> dict[Any, Any]:
        if not name:
            return {self._grid: "", self._tags: "", self._found: "", **self._pager.show(0, 1)}
        # Before the captions are read: the browser keeps what was saved later.
        stamp = time.time()
        page = self._service.page(name, query.on(name), base)
        return {
            self._query: page.query,
            self._grid: captions_html.rows(name, page, base, stamp, self._service),
            **self._pager.show(page.query.page, page.num_pages),
            **self._show_tags(page),
        }

    def _show_tags(self, page: CaptionPage) -> dict[Any, Any]:
        return {self._tags: captions_html.tags(page), self._found: captions_html.found(page)}

    def _offer_bases(self, base: str) -> Any:
        choices = self._service.bases()
        return gr.update(choices=choices, value=base if base in [path for _, path in choices] else "")

    # --- filter --------------------------------------------------------------------------------------------------

    def _wire_filter(self) -> None:
        inputs = [self._choice, self._query, self._base]
        typed = [*inputs, self._text, self._is_regex, self._order, self._tag_search]
        shown: dict[str, Any] = {"show_progress": "hidden"}
        for event in (self._text.submit, self._text.blur, self._is_regex.input, self._order.input):
            event(handler(self._filter), typed, self._refiltered, **shown)
        # Not `input`: gradio 6.31 does not tell of what is pasted or deleted by it.
        self._tag_search.change(
            handler(self._find_tag),
            [*inputs, self._tag_search],
            [self._query, self._tags],
            trigger_mode="always_last",
            **_QUIET,
        )
        self._base.input(handler(self._show), inputs, self._parts, **shown)
        self._tags.pick(handler(self._pick), inputs, self._refiltered, **shown)
        self._pager.wire(self._turn, inputs, self._parts, **shown)
        self._grid.turn(handler(self._turn_by_key), inputs, self._parts, **shown)

    def _filter(
        self, name: str | None, query: CaptionQuery, base: str, text: str, is_regex: bool, order: Any, tag_search: str
    ) -> Any:
        asked = replace(query, text=text.strip(), is_regex=is_regex, order=order, tag_search=tag_search)
        if asked == query:
            return gr.skip()  # the field was left as it was
        return {self._planned: "", **self._show(name or "", replace(asked, page=0), base)}

    def _find_tag(self, name: str | None, query: CaptionQuery, base: str, tag_search: str) -> Any:
        if not name:
            return gr.skip()
        query = replace(query, tag_search=tag_search)
        return {self._query: query, self._tags: captions_html.tags(self._service.page(name, query, base))}

    def _pick(self, name: str | None, query: CaptionQuery, base: str, event: gr.EventData) -> Any:
        return {self._planned: "", **self._show(name or "", query.picked(str(event.tag)), base)}

    def _turn(self, name: str | None, query: CaptionQuery, base: str, step: int) -> Any:
        return self._show(name or "", replace(query, page=max(0, query.page + step)), base)

    def _turn_by_key(self, name: str | None, query: CaptionQuery, base: str, event: gr.EventData) -> Any:
        return self._turn(name, query, base, 1 if event.step > 0 else -1)

    # --- rows ----------------------------------------------------------------------------------------------------

    def _wire_rows(self) -> None:
        self._grid.saved(
            handler(self._saved),
            [self._choice, self._query, self._base],
            [self._tags, self._found, self._planned, self._differences, *self._shared.summary_parts],
            trigger_mode="always_last",
            **_QUIET,
        )

    def _saved(self, name: str | None, query: CaptionQuery, base: str) -> Any:
        """The tags after a caption was saved; the rows stay as they are, for somebody is typing in them."""
        if not name:
            return gr.skip()
        page = self._service.page(name, query, base)
        summary = self._shared.show_summary(self._datasets.view(name)) if page.num_pictures <= _SUMMARY_UP_TO else {}
        return {self._planned: "", self._differences: "", **self._show_tags(page), **summary}

    def _server_save(self) -> Any:
        def save(data: Any) -> dict[str, Any]:
            """Called by the browser: keep the captions of a picture; what is wrong comes back as `error`."""
            name, picture, text = (str(data.get(key, "")) for key in ("name", "picture", "text"))
            try:
                kept = self._service.save(name, picture, text[:_MAX_TYPED])
                now = self._service.captions_of(name, picture) if kept is None else kept
            except InkwashError as error:
                return {"error": str(error)}
            return {"text": "\n".join(now), "stamp": time.time(), "changed": kept is not None}

        return save

    def _server_count(self) -> Any:
        def count(data: Any) -> Mapping[str, str] | None:
            """Called by the browser: the tokens of what is being typed."""
            try:
                tokens = self._service.tokens(str(data.get("text", ""))[:_MAX_TYPED], str(data.get("base", "")))
            except InkwashError:
                return None  # the page said so when the base was chosen
            return captions_html.token_facts(tokens)

        return count

    # --- all at once ---------------------------------------------------------------------------------------------

    def _wire_edits(self) -> None:
        said = [self._choice, self._query, self._action, self._what, self._new, self._edit_regex, self._case]
        self._preview.click(handler(self._show_plan), said, self._planned, show_progress_on=[self._planned])
        self._apply.click(
            handler(self._do), said, [self._planned, self._shared.changed], show_progress_on=[self._planned]
        )

    def _show_plan(self, name: str | None, query: CaptionQuery, *said: Any) -> str:
        return captions_html.plan(self._service.plan(name or "", query, self._edit(name, *said)))

    def _do(self, name: str | None, query: CaptionQuery, *said: Any) -> tuple[str, Any]:
        plan = self._service.apply(name or "", query, self._edit(name, *said))
        if not plan.changes:
            note("No caption that is shown needs this change.")
            return "", gr.skip()
        note(f"{plan.title}: {len(plan.changes):,} captions changed. Undo takes it back.")
        return "", news()

    def _edit(self, name: str | None, action: str, what: str, new: str, is_regex: bool, matches_case: bool) -> Any:
        trigger = self._service.store.get(name or "").trigger_word
        return self._service.edit(action, what, new, is_regex=is_regex, matches_case=matches_case, trigger=trigger)

    # --- files ---------------------------------------------------------------------------------------------------

    def _wire_files(self) -> None:
        shown: dict[str, Any] = {"show_progress_on": [self._differences]}
        self._compare.click(handler(self._show_differences), self._choice, self._differences, **shown)
        self._export.click(
            handler(self._write_files), [self._choice, self._overwrite], [self._differences, self._overwrite], **shown
        )
        self._take.click(handler(self._take_files), self._choice, [self._differences, self._shared.changed], **shown)

    def _show_differences(self, name: str | None) -> str:
        return captions_html.differences(self._service.differences(name or ""))

    def _write_files(
        self,
        name: str | None,
        overwrite: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio's way
    ) -> tuple[str, bool]:
        report = self._service.export(
            name or "",
            overwrite=overwrite,
            progress=lambda done, total: progress((done, total), desc="Writing caption files"),
        )
        note(report.summary())
        # For this time only: the next export asks again.
        return captions_html.left_out(report), False

    def _take_files(self, name: str | None) -> tuple[str, Any]:
        number = self._service.take(name or "")
        note(f"{number:,} captions are those of the files again." if number else "The files say nothing else.")
        return "", news() if number else gr.skip()


def build(services: Services, page: DatasetPage) -> None:
    """Lay the section out."""
    CaptionsSection(services, page)
