"""The pictures of a data set: a gallery, and one of them large with its caption to write."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.messages import handler, note
from app.services.context import Services
from app.services.datasets import DatasetService, DatasetView, PictureView
from app.tabs import dataset_html
from app.tabs.dataset_page import DatasetPage, news
from app.tabs.galleries import tile_gallery
from app.tabs.pager import Pager

TITLE = "Pictures"
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}


class PicturesSection:
    """What is chosen lives in the browser: the hidden name of the picture."""

    def __init__(self, services: Services, page: DatasetPage) -> None:
        self._service = DatasetService(services.data)
        self._shared = page
        self._choice = page.choice
        self._lay_out_pictures()
        self._lay_out_viewer()
        shown = [*self._page_parts, *self._viewer_parts]
        page.on_show(self._show, [self._page, self._picture], shown, show_progress_on=[self._gallery])
        self._wire_pictures()

    def _lay_out_pictures(self) -> None:
        self._gallery = tile_gallery("dataset-gallery", "Pictures", 5)
        self._page = gr.State(0)
        self._pager = Pager("dataset")

    def _lay_out_viewer(self) -> None:
        with gr.Row(visible=False, equal_height=False, elem_id="dataset-viewer") as self._viewer:
            with gr.Column(scale=3, min_width=280):
                self._image = gr.Image(
                    show_label=False,
                    interactive=False,
                    buttons=["fullscreen"],
                    height=420,
                    elem_id="dataset-image",
                    elem_classes="picture-large",
                )
            with gr.Column(scale=3, min_width=280):
                self._facts = gr.HTML("", elem_id="dataset-facts", padding=False)
                # In the browser, not in a gr.State: saving on blur must name the picture that the text was written for.
                self._picture = gr.Textbox("", elem_id="dataset-picture", elem_classes="kept-in-browser")
                self._caption = gr.Textbox(
                    "",
                    label="Caption",
                    info="Saved when you press Enter or leave the field.",
                    lines=1,
                    max_lines=8,
                    elem_id="dataset-caption",
                    interactive=True,
                )
                with gr.Row():
                    self._back = gr.Button("← Previous", elem_id="dataset-back", **_SMALL)
                    self._on = gr.Button("Save and next →", variant="primary", elem_id="dataset-next", **_SMALL)
                self._remove = gr.Button("Take out of the data set", elem_id="dataset-remove", **_SMALL)

    @property
    def _page_parts(self) -> list[Any]:
        return [self._gallery, self._page, *self._pager.parts]

    @property
    def _viewer_parts(self) -> list[Any]:
        return [self._viewer, self._image, self._facts, self._picture, self._caption]

    def _wire_pictures(self) -> None:
        self._pager.wire(
            lambda name, page, step: self._turn(name, page + step),
            [self._choice, self._page],
            self._page_parts,
            show_progress_on=[self._gallery],
        )
        self._gallery.select(handler(self._look), [self._choice, self._page], self._viewer_parts, **_QUIET)
        written = [self._choice, self._picture, self._caption]
        for event in (self._caption.blur, self._caption.submit):
            event(handler(self._save), written, self._shared.summary_parts, **_QUIET)
        for button, step in ((self._back, -1), (self._on, 1)):
            button.click(
                handler(lambda name, picture, caption, step=step: self._save_and_go(name, picture, caption, step)),
                written,
                [*self._viewer_parts, *self._shared.summary_parts],
                **_QUIET,
            )
        self._remove.click(
            handler(self._take_out),
            [self._choice, self._picture, self._page],
            [self._shared.changed, *self._page_parts, *self._viewer_parts],
            show_progress="hidden",
        )

    def _turn(self, name: str, page: int) -> dict[Any, Any]:
        return self._show_page(self._service.view(name), page)

    def _look(self, name: str, page: int, event: gr.SelectData) -> dict[Any, Any]:
        view = self._service.view(name)
        return self._show_picture(self._service.picture(view, self._service.on_page(page, _tile_index(event))))

    def _save(self, name: str | None, picture: str, caption: str) -> Any:
        if not name or not picture or not self._service.save_caption(name, picture, caption):
            return gr.skip()
        return self._shared.show_summary(self._service.view(name))

    def _save_and_go(self, name: str, picture: str, caption: str, step: int) -> dict[Any, Any]:
        self._service.save_caption(name, picture, caption)
        view = self._service.view(name)
        shown = self._service.picture(view, view.index_of(picture) + step)
        return {**self._show_picture(shown), **self._shared.show_summary(view)}

    def _take_out(self, name: str, picture: str, page: int) -> dict[Any, Any]:
        index = self._service.view(name).index_of(picture)
        self._service.store.remove_pictures(name, [picture])
        note("The picture is left out; its file stays where it is. Undo brings it back.")
        view = self._service.view(name)
        return {
            self._shared.changed: news(),
            **self._show_page(view, page),
            **self._show_picture(self._service.picture(view, min(index, max(0, len(view.pictures) - 1)))),
        }

    def _show(self, name: str, page: int, picture: str) -> dict[Any, Any]:
        if not name:
            return {self._gallery: [], **self._show_picture(None)}
        view = self._service.view(name)
        index = view.index_of(picture)
        is_there = bool(view.pictures) and view.pictures[index].name == picture
        return {
            **self._show_page(view, page if is_there else 0),
            **self._show_picture(self._service.picture(view, index)),
        }

    def _show_page(self, view: DatasetView, page: int) -> dict[Any, Any]:
        page = max(0, min(page, view.num_pages - 1))
        return {
            self._gallery: gr.update(value=self._service.tiles(view, page), selected_index=None),
            self._page: page,
            **self._pager.show(page, view.num_pages),
        }

    def _show_picture(self, shown: PictureView | None) -> dict[Any, Any]:
        if shown is None:
            return {self._viewer: gr.update(visible=False), self._picture: "", self._caption: "", self._image: None}
        facts = shown.facts
        return {
            self._viewer: gr.update(visible=True),
            self._image: str(shown.image) if shown.image else None,
            self._facts: dataset_html.picture_facts(shown),
            self._picture: facts.name,
            self._caption: "\n".join(facts.captions) or facts.caption or "",
        }


def _tile_index(event: gr.SelectData) -> int:
    return event.index[0] if isinstance(event.index, (list, tuple)) else event.index


def build(services: Services, page: DatasetPage) -> None:
    """Lay the section out."""
    PicturesSection(services, page)
