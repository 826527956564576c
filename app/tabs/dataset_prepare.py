"""The Prepare section: what will be trained of each picture, and crops by drawing or by numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app import render
from app.messages import handler, note
from app.services.context import Services
from app.services.dataset_prepare import TRAIN_FORM, DatasetPrepareService, Overview
from app.tabs.dataset_cutout import CutoutPanel
from app.tabs.dataset_page import DatasetPage, news
from app.tabs.dataset_prepare_html import proposed, rows, status, summary_html
from app.tabs.dataset_stage import make_stage, stage_html, trained_html
from trainer.errors import DatasetError

TITLE = "Prepare"
_TELL_SECONDS = 0.5
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_HIDDEN: dict[str, Any] = {"show_progress": "hidden"}
_SIDES = ("Left", "Top", "Right", "Bottom")


class PrepareSection:
    """One page's Prepare section. Which picture is chosen lives in the browser."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._service = DatasetPrepareService(services.data, services.settings)
        self._choice, self._changed = page.choice, page.changed
        self._lay_out()
        CutoutPanel(services, page)
        asked = [self._source, self._find, self._picture, self._proposals]
        shown = [*self._overview_parts, *self._picture_parts]
        page.on_show(self._show, asked, shown)
        self._wire([self._choice, *asked], shown)

    def _lay_out(self) -> None:
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
                )
            with gr.Column(scale=4, min_width=280, visible=False) as self._panel:
                self._picture = gr.Textbox("", elem_id="prepare-picture", elem_classes="kept-in-browser")
                self._stage = make_stage(elem_id="prepare-stage")
                with gr.Row():
                    self._sides = [
                        gr.Number(
                            None,
                            label=f"{side} (px)",
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
                with gr.Row():
                    self._colour = gr.Radio(
                        [("White", "#ffffff"), ("Grey", "#808080"), ("Black", "#000000")],
                        value="#ffffff",
                        label="Background, where there is a mask",
                        elem_id="prepare-colour",
                        interactive=True,
                    )
                    self._fill = gr.Button("Fill it", elem_id="prepare-fill", **_SMALL)
                    self._unfill = gr.Button("Keep it", elem_id="prepare-unfill", **_SMALL)
                self._trained = gr.HTML("", elem_id="prepare-trained", padding=False)
        self._lay_out_proposals()
        with gr.Row(equal_height=True):
            self._ask_flips = gr.Button("May they be mirrored?", elem_id="prepare-flips", scale=0, **_SMALL)
            self._flips = gr.HTML("", elem_id="prepare-flip-advice", padding=False)

    def _lay_out_proposals(self) -> None:
        self._proposals = gr.State({})
        with gr.Accordion("Propose crops", open=False, elem_id="prepare-proposals"):
            with gr.Row(equal_height=True):
                self._way = gr.Radio(
                    self._service.finders(),
                    value=self._service.finders()[0][1],
                    label="Look for",
                    info="Guesses that keep the subject in what is trained: look at them before you accept.",
                    elem_id="prepare-way",
                    interactive=True,
                    scale=3,
                )
                self._close = gr.Checkbox(
                    False,
                    label="Close to the subject",
                    info="Off: as much of the picture as can be.",
                    elem_id="prepare-close",
                    interactive=True,
                    scale=2,
                )
            with gr.Row():
                self._propose = gr.Button("For this picture", elem_id="prepare-propose", **_SMALL)
                self._propose_all = gr.Button("For all without a crop", elem_id="prepare-propose-all", **_SMALL)
                self._cancel = gr.Button("Cancel", elem_id="prepare-cancel", **_SMALL)
            self._status = gr.HTML("", elem_id="prepare-status", padding=False)
            with gr.Row():
                self._accept = gr.Button("Accept for this picture", elem_id="prepare-accept", **_SMALL)
                self._accept_all = gr.Button("Accept all", variant="primary", elem_id="prepare-accept-all", **_SMALL)

    @property
    def _overview_parts(self) -> list[Any]:
        return [self._summary, self._list]

    @property
    def _picture_parts(self) -> list[Any]:
        return [self._panel, self._picture, self._stage, *self._sides, self._whole, self._trained]

    def _wire(self, asked: list[Any], shown: list[Any]) -> None:
        self._source.input(handler(self._show), asked, shown, **_HIDDEN)
        for event in (self._find.submit, self._find.blur):
            event(handler(self._filter), asked[:3], self._list, **_HIDDEN)
        self._list.select(handler(self._look), [*asked[:3], self._proposals], self._picture_parts, **_HIDDEN)
        self._stage.drawn(handler(_drawn), self._picture, self._sides, **_HIDDEN)
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

        self._stage.painted(handler(self._paint), [self._choice, self._picture], self._changed, **_HIDDEN)
        filled = [self._choice, self._picture, self._colour]
        self._fill.click(handler(self._set_background), filled, self._changed, trigger_mode="once", **_HIDDEN)
        self._unfill.click(handler(self._set_background), filled[:2], self._changed, trigger_mode="once", **_HIDDEN)
        self._ask_flips.click(handler(self._advise_flips), self._choice, self._flips, **_HIDDEN)
        self._choice.change(lambda: "", None, self._flips, queue=False, **_HIDDEN)
        self._wire_proposals([*asked[:2], self._picture, self._way, self._close])

    def _wire_proposals(self, asked: list[Any]) -> None:
        found = [self._status, self._proposals, self._stage]
        working: Any = []
        for button, look in ((self._propose, self._look_at_one), (self._propose_all, self._look_at_all)):
            working.append(button.click(handler(look), asked, found, trigger_mode="once", **_HIDDEN))
        self._cancel.click(
            lambda: status("Cancelled. Nothing was changed."), None, self._status, cancels=working, **_HIDDEN
        )
        given = [self._choice, self._proposals, self._picture]
        for button, alone in ((self._accept, True), (self._accept_all, False)):
            button.click(
                handler(lambda *values, alone=alone: self._take(*values, alone=alone)),
                given,
                [self._proposals, self._changed],
                trigger_mode="once",
                **_HIDDEN,
            )

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
                overview, picture or next((row[0] for row in rows(overview, find)), ""), _of(name, proposals)
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
        return self._show_picture(overview, str(event.row_value[0]), _of(name, proposals))

    def _show_picture(
        self, overview: Overview, picture: str, proposals: dict[str, tuple[list[int], str]]
    ) -> dict[Any, Any]:
        shown = self._service.picture(overview, picture)
        if shown is None:
            return self._no_picture()
        facts = shown.facts
        box = facts.crop.box if facts.crop else (0, 0, *facts.whole_size)
        return {
            self._panel: gr.update(visible=True),
            self._picture: facts.name,
            self._stage: stage_html(shown, proposals.get(facts.name, ((), ""))[0]),
            **dict(zip(self._sides, box, strict=True)),
            self._whole: gr.update(interactive=facts.crop is not None),
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

    def _set_background(self, name: str, picture: str, colour: str | None = None) -> Any:
        if not self._service.fill(name, picture, colour):
            note("There was nothing to change.")
            return gr.skip()
        note("The background is filled; Undo takes it back." if colour else "The picture has its own background again.")
        return news()

    def _paint(self, name: str, picture: str, event: gr.EventData) -> Any:
        if event.picture != picture or not isinstance(event.mask, str):
            return gr.skip()
        if not self._service.set_mask(name, picture, event.mask):
            note("There was nothing to change.")
            return gr.skip()
        note("The mask is saved; Undo takes it back." if event.mask else "The painted mask is taken away.")
        return news()

    # --- proposals -----------------------------------------------------------------------------------------------

    def _look_at_one(self, *asked: Any) -> Iterator[dict[Any, Any]]:
        yield from self._look_for(*asked, alone=True)

    def _look_at_all(self, *asked: Any) -> Iterator[dict[Any, Any]]:
        yield from self._look_for(*asked, alone=False)

    def _look_for(
        self, name: str | None, source: str, picture: str, way: str, close: bool, *, alone: bool
    ) -> Iterator[dict[Any, Any]]:
        """Proposals, kept in the browser with the data set's name: a crop and what was seen, by picture."""
        if not name or not picture:
            raise DatasetError("There is no picture to look at.", fix="Choose a data set with pictures.")
        overview = self._service.overview(name, self._service.config(source))
        total, found, told = 1 if alone else len(overview.cuts), dict[str, tuple[list[int], str]](), 0.0
        for done, proposal in self._service.propose(overview, [picture] if alone else [], way, close=close):
            if proposal is not None:
                found[proposal.picture] = (list(proposal.box), proposal.seen)
            if time.monotonic() > told + _TELL_SECONDS and done < total:
                told = time.monotonic()
                yield {self._status: status(f"Looking at picture {done:,} of {total:,} …")}
        shown = self._service.picture(overview, picture)
        yield {
            self._status: status(proposed(found, total)),
            self._proposals: {"of": name, "found": found},
            self._stage: stage_html(shown, found.get(picture, ((), ""))[0]) if shown else "",
        }

    def _take(self, name: str | None, proposals: dict[str, Any], picture: str, *, alone: bool) -> tuple[Any, Any]:
        found = _of(name, proposals)
        chosen = {key: box for key, (box, _) in found.items() if not alone or key == picture}
        if not name or not chosen:
            raise DatasetError("No crop is proposed here.", fix="Let it look first.")
        number = self._service.accept(name, chosen)
        note("The crop is set; Undo takes it back." if number == 1 else f"{number} crops are set; Undo takes all back.")
        return {"of": name, "found": {key: one for key, one in found.items() if key not in chosen}}, news()


def _of(name: str | None, proposals: dict[str, Any]) -> dict[str, tuple[list[int], str]]:
    """The proposals, if they are for this data set."""
    return proposals.get("found", {}) if name and proposals.get("of") == name else {}


def _drawn(picture: str, event: gr.EventData) -> Any:
    """What was drawn, as numbers; nothing where another picture is shown by now."""
    box = event.box
    if event.picture != picture or not isinstance(box, list) or len(box) != len(_SIDES):
        return gr.skip()
    return [int(value) for value in box]


def build(services: Services, page: DatasetPage) -> None:
    """Lay the section out."""
    PrepareSection(services, page)
