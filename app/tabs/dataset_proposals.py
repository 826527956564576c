"""The part of the Prepare section that proposes crops: guesses, which are shown and change nothing until they are accepted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.messages import handler, note
from app.services.dataset_prepare import DatasetPrepareService
from app.tabs.dataset_page import DatasetPage, news
from app.tabs.dataset_prepare_html import proposed, status
from trainer.dataset.scan import PictureFacts
from trainer.errors import DatasetError

_TELL_SECONDS = 0.5
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_HIDDEN: dict[str, Any] = {"show_progress": "hidden"}

Found = dict[str, tuple[list[int], str, int]]
"""By picture name: a crop in px of the picture as it lay, what was seen in it, and how it was turned."""


class ProposalPanel:
    """One page's accordion. What is proposed lives in the browser, with the data set's name.

    It does not draw the proposals: `looked` are the events after which `state` holds new ones.
    """

    def __init__(
        self, service: DatasetPrepareService, page: DatasetPage, source: gr.Dropdown, picture: gr.Textbox
    ) -> None:
        self._service, self._changed = service, page.changed
        self.state = gr.State({})
        self.looked: list[Any] = []
        with gr.Accordion("Propose crops", open=False, elem_id="prepare-proposals"):
            self._lay_out()
        self._wire(page, [page.choice, source, picture, self._way, self._close], picture)

    def _lay_out(self) -> None:
        with gr.Row(equal_height=True):
            self._way = gr.Radio(
                self._service.finders(),
                value=self._service.finders()[0][1],
                label="Look for",
                info="Guesses that keep the subject in what is trained: look at them before you accept. Where there is a mask, it says what the subject is. "
                + self._service.finder_hints(),
                elem_id="prepare-way",
                min_width=260,
                interactive=True,
                scale=3,
            )
            self._close = gr.Checkbox(
                False,
                label="Close to the subject",
                info="Off: as much of the picture as can be.",
                elem_id="prepare-close",
                min_width=200,
                interactive=True,
                scale=2,
            )
        with gr.Row():
            self._one = gr.Button("For this picture", elem_id="prepare-propose", **_SMALL)
            self._all = gr.Button("For all without a crop", elem_id="prepare-propose-all", **_SMALL)
            self._cancel = gr.Button("Cancel", elem_id="prepare-cancel", **_SMALL)
        self._status = gr.HTML("", elem_id="prepare-status", padding=False)
        with gr.Row():
            self._accept = gr.Button("Accept for this picture", interactive=False, elem_id="prepare-accept", **_SMALL)
            self._accept_all = gr.Button(
                "Accept all", variant="primary", interactive=False, elem_id="prepare-accept-all", **_SMALL
            )

    def _wire(self, page: DatasetPage, asked: list[Any], picture: gr.Textbox) -> None:
        for button, look in ((self._one, self._look_at_one), (self._all, self._look_at_all)):
            self.looked.append(
                button.click(handler(look), asked, [self._status, self.state], trigger_mode="once", **_HIDDEN)
            )
        self._cancel.click(
            lambda: status("Cancelled. Nothing was changed."), None, self._status, cancels=self.looked, **_HIDDEN
        )
        # Who goes to another data set does not wait for this one's; what it found is there again for who comes back.
        page.choice.change(None, None, None, cancels=self.looked)
        offered = [self._status, self._accept, self._accept_all]
        page.on_show(self._offer, [self.state], offered)
        for looked in self.looked:
            looked.success(handler(self._offer), [page.choice, self.state], offered, **_HIDDEN)
        for button, alone in ((self._accept, True), (self._accept_all, False)):
            button.click(
                handler(lambda *values, alone=alone: self._take(*values, alone=alone)),
                [page.choice, self.state, picture],
                [self.state, self._changed],
                trigger_mode="once",
                **_HIDDEN,
            )

    def _look_at_one(self, *asked: Any) -> Iterator[dict[Any, Any]]:
        yield from self._look_for(*asked, alone=True)

    def _look_at_all(self, *asked: Any) -> Iterator[dict[Any, Any]]:
        yield from self._look_for(*asked, alone=False)

    def _look_for(
        self, name: str | None, source: str, picture: str, way: str, close: bool, *, alone: bool
    ) -> Iterator[dict[Any, Any]]:
        if not name or not picture:
            raise DatasetError("There is no picture to look at.", fix="Choose a data set with pictures.")
        overview = self._service.overview(name, self._service.config(source))
        turns = {cut.facts.name: cut.facts.turn for cut in overview.cuts}
        total, found, told = 1 if alone else len(overview.cuts), Found(), 0.0
        for done, proposal in self._service.propose(overview, [picture] if alone else [], way, close=close):
            if proposal is not None:
                found[proposal.picture] = (list(proposal.box), proposal.seen, turns[proposal.picture])
            if time.monotonic() > told + _TELL_SECONDS and done < total:
                told = time.monotonic()
                yield {self._status: status(f"Looking at picture {done:,} of {total:,} …")}
        said = proposed([seen for _, seen, _ in found.values()], total)
        yield {self._status: status(said), self.state: {"of": name, "found": found, "said": said}}

    def _offer(self, name: str | None, proposals: dict[str, Any]) -> dict[Any, Any]:
        """What is proposed for this data set, and the buttons that accept it."""
        accept = gr.update(interactive=bool(_of(name, proposals)))
        said = proposals.get("said", "") if proposals.get("of") == name else ""
        return {self._status: status(said) if said else "", self._accept: accept, self._accept_all: accept}

    def _take(self, name: str | None, proposals: dict[str, Any], picture: str, *, alone: bool) -> dict[Any, Any]:
        found = _of(name, proposals)
        chosen = {key: (box, turn) for key, (box, _, turn) in found.items() if not alone or key == picture}
        if not name or not chosen:
            raise DatasetError("No crop is proposed here.", fix="Let it look first.")
        number = self._service.accept(name, chosen)
        note("The crop is set; Undo takes it back." if number == 1 else f"{number} crops are set; Undo takes all back.")
        rest = {key: one for key, one in found.items() if key not in chosen}
        said = f"{len(rest):,} more are proposed." if rest else ""
        return {self.state: {"of": name, "found": rest, "said": said}, self._changed: news()}


def _of(name: str | None, proposals: dict[str, Any]) -> Found:
    """The proposals, if they are for this data set."""
    return proposals.get("found", {}) if name and proposals.get("of") == name else {}


def box_for(name: str | None, proposals: dict[str, Any], facts: PictureFacts) -> list[int]:
    """The crop that is proposed for a picture as it lies now; empty without one."""
    box, _, turn = _of(name, proposals).get(facts.name, ([], "", 0))
    return box if turn == facts.turn else []
