"""The Prepare section: what will be trained of each picture, and crops by drawing or by numbers."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.context import Services
from app.services.dataset_prepare import TRAIN_FORM, DatasetPrepareService, Overview
from app.tabs.dataset_cutout import CutoutPanel
from app.tabs.dataset_page import DatasetPage, news
from app.tabs.dataset_prepare_html import rows, status, summary_html
from app.tabs.dataset_proposals import ProposalPanel, box_for
from app.tabs.dataset_stage import make_stage, stage_html, trained_html
from trainer.errors import DatasetError

TITLE = "Prepare"
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_HIDDEN: dict[str, Any] = {"show_progress": "hidden"}
_SIDES = ("Left", "Top", "Right", "Bottom")


class PrepareSection:
    """One page's Prepare section. Which picture is chosen lives in the browser."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._service = DatasetPrepareService(services.data, services.settings)
        self._choice, self._changed = page.choice, page.changed
        self._lay_out(page)
        CutoutPanel(services, page)
        asked = [self._source, self._find, self._picture, self._proposing.state]
        shown = [*self._overview_parts, *self._picture_parts]
        page.on_show(self._show, asked, shown)
        self._wire([self._choice, *asked], shown)

    def _lay_out(self, page: DatasetPage) -> None:
        with gr.Row(equal_height=True):
            self._source = gr.Dropdown(
                self._service.sources(),
                value=TRAIN_FORM,
                label="Settings",
                info="Resolution and buckets say how pictures are cut.",
                elem_id="prepare-source",
                interactive=True,
                scale=3,
            )
            self._find = gr.Textbox("", label="Find by name", elem_id="prepare-find", max_length=200, scale=2)
        self._summary = gr.HTML("", elem_id="prepare-summary", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=280):
                self._list = gr.Dataframe(
                    headers=["Picture", "Trained at", "Lost"],
                    column_widths=["52%", "28%", "20%"],
                    interactive=False,
                    show_label=False,
                    buttons=[],
                    max_height=420,
                    elem_id="prepare-list",
                    elem_classes="row-table",
                )
            with gr.Column(scale=4, min_width=280, visible=False) as self._panel:
                self._picture = gr.Textbox("", elem_id="prepare-picture", elem_classes="kept-in-browser")
                self._stage = make_stage(self._service.set_mask, elem_id="prepare-stage")
                with gr.Row():
                    self._sides = [
                        gr.Number(
                            None,
                            label=side,
                            placeholder="px",
                            precision=0,
                            minimum=0,
                            min_width=70,
                            elem_id=f"prepare-{side.lower()}",
                            interactive=True,
                        )
                        for side in _SIDES
                    ]
                with gr.Row():
                    self._crop = gr.Button("Crop to this", variant="primary", elem_id="prepare-crop", **_SMALL)
                    self._whole = gr.Button("Use the whole picture", elem_id="prepare-whole", **_SMALL)
                self._colour = gr.Radio(
                    [("White", "#ffffff"), ("Grey", "#808080"), ("Black", "#000000")],
                    value="#ffffff",
                    label="Colour of the background",
                    info="What the mask leaves out can be filled with it.",
                    elem_id="prepare-colour",
                    interactive=True,
                )
                with gr.Row():
                    self._fill = gr.Button("Fill the background", elem_id="prepare-fill", **_SMALL)
                    self._unfill = gr.Button("Keep its own background", elem_id="prepare-unfill", **_SMALL)
                self._trained = gr.HTML("", elem_id="prepare-trained", padding=False)
        self._proposing = ProposalPanel(self._service, page, self._source, self._picture)
        with gr.Row(equal_height=True):
            self._ask_flips = gr.Button(
                "May they be mirrored?", elem_id="prepare-flips", scale=0, size="sm", min_width=190
            )
            self._flips = gr.HTML("", elem_id="prepare-flip-advice", padding=False)

    @property
    def _overview_parts(self) -> list[Any]:
        return [self._summary, self._list]

    @property
    def _picture_parts(self) -> list[Any]:
        buttons = [self._whole, self._fill, self._unfill]
        return [self._panel, self._picture, self._stage, *self._sides, *buttons, self._trained]

    def _wire(self, asked: list[Any], shown: list[Any]) -> None:
        self._source.input(handler(self._show), asked, shown, **_HIDDEN)
        for event in (self._find.submit, self._find.blur):
            event(handler(self._filter), asked[:3], self._list, **_HIDDEN)
        for looked in self._proposing.looked:
            looked.success(handler(self._show), asked, shown, **_HIDDEN)
        self._list.select(handler(self._look), [*asked[:3], self._proposing.state], self._picture_parts, **_HIDDEN)
        self._stage.drawn(handler(_drawn), [self._choice, self._picture], self._sides, **_HIDDEN)
        self._crop.click(
            handler(self._set),
            [self._choice, self._picture, *self._sides],
            self._changed,
            trigger_mode="once",
            **_HIDDEN,
        )
        self._whole.click(
            handler(self._set), [self._choice, self._picture], self._changed, trigger_mode="once", **_HIDDEN
        )

        turned = [self._choice, self._source, self._find, self._picture]
        self._stage.turned(handler(self._turn), turned, self._changed, **_HIDDEN)
        self._stage.painted(handler(_painted), None, self._changed, **_HIDDEN)
        filled = [self._choice, self._picture, self._colour]
        self._fill.click(handler(self._set_background), filled, self._changed, trigger_mode="once", **_HIDDEN)
        self._unfill.click(handler(self._set_background), filled[:2], self._changed, trigger_mode="once", **_HIDDEN)
        self._ask_flips.click(handler(self._advise_flips), self._choice, self._flips, **_HIDDEN)
        self._choice.change(lambda: "", None, self._flips, queue=False, **_HIDDEN)

    # --- showing -------------------------------------------------------------------------------------------------

    def _show(
        self, name: str | None, source: str, find: str, picture: str, proposals: dict[str, Any]
    ) -> dict[Any, Any]:
        if not name:
            return {self._summary: render.empty("No data set is chosen."), self._list: [], **self._no_picture()}
        overview = self._service.overview(name, self._service.config(source))
        return {
            self._summary: summary_html(overview),
            self._list: rows(overview, find),
            **self._show_picture(
                overview, name, picture or next((row[0] for row in rows(overview, find)), ""), proposals
            ),
        }

    def _filter(self, name: str | None, source: str, find: str) -> Any:
        if not name:
            return gr.skip()
        return rows(self._service.overview(name, self._service.config(source)), find)

    def _look(
        self, name: str, source: str, find: str, proposals: dict[str, Any], event: gr.SelectData
    ) -> dict[Any, Any]:
        overview = self._service.overview(name, self._service.config(source))
        return self._show_picture(overview, name, str(event.row_value[0]), proposals)

    def _show_picture(self, overview: Overview, name: str, picture: str, proposals: dict[str, Any]) -> dict[Any, Any]:
        shown = self._service.picture(overview, picture)
        if shown is None:
            return self._no_picture()
        facts = shown.facts
        box = facts.crop.box if facts.crop else (0, 0, *facts.whole_size)
        return {
            self._panel: gr.update(visible=True),
            self._picture: facts.name,
            self._stage: stage_html(name, shown, box_for(name, proposals, facts)),
            **dict(zip(self._sides, box, strict=True)),
            self._whole: gr.update(interactive=facts.crop is not None),
            self._fill: gr.update(interactive=facts.mask is not None),
            self._unfill: gr.update(interactive=facts.background is not None),
            self._trained: trained_html(shown, overview.config.masks),
        }

    def _no_picture(self) -> dict[Any, Any]:
        return {self._panel: gr.update(visible=False), self._picture: "", self._stage: "", self._trained: ""}

    def _advise_flips(self, name: str | None) -> str:
        if not name:
            raise DatasetError("No data set is chosen.", fix="Choose one on the left.")
        return status(self._service.flip_advice(name))

    # --- changing ------------------------------------------------------------------------------------------------

    def _set(self, name: str, picture: str, *sides: float | None) -> Any:
        if not self._service.set_crop(name, picture, sides or None):
            note("The picture is cropped so already.")
            return gr.skip()
        note("The crop is set; Undo takes it back." if sides else "The whole picture counts again.")
        return news()

    def _turn(self, name: str, source: str, find: str, picture: str, event: gr.EventData) -> Any:
        if (event.set, event.picture) != (name, picture):
            return gr.skip()
        overview = self._service.overview(name, self._service.config(source))
        number = self._service.turn(overview, name, picture, find if event.all else None, int(event.degrees))
        note(f"{number:,} pictures are turned; Undo takes it back." if number != 1 else "Turned; Undo takes it back.")
        return news()

    def _set_background(self, name: str, picture: str, colour: str | None = None) -> Any:
        if not self._service.fill(name, picture, colour):
            note("There was nothing to change.")
            return gr.skip()
        note("The background is filled; Undo takes it back." if colour else "The picture has its own background again.")
        return news()


def _painted(event: gr.EventData) -> Any:
    if not event.changed:
        note("There was nothing to change.")
        return gr.skip()
    note("The painted mask is taken away." if event.removed else "The mask is saved; Undo takes it back.")
    return news()


def _drawn(name: str, picture: str, event: gr.EventData) -> Any:
    """What was drawn, as numbers; nothing where another picture is shown by now."""
    box = event.box
    if (event.set, event.picture) != (name, picture) or not isinstance(box, list) or len(box) != len(_SIDES):
        return gr.skip()
    return [int(value) for value in box]


def build(services: Services, page: DatasetPage) -> None:
    """Lay the section out."""
    PrepareSection(services, page)
