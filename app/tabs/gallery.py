"""The Gallery tab: everything that was generated, searchable; one picture with its recipe, back to the form, to the trash and out of it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import render
from app.links import Links, send
from app.messages import handler, note
from app.recipe_view import found_recipe
from app.services.context import Services
from app.services.gallery import GalleryPage, GalleryService
from app.tabs.galleries import tile_gallery
from app.tabs.pager import Pager
from trainer.errors import ConfigError
from trainer.gallery import PictureInfo

TITLE = "Gallery"
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_ACTION: dict[str, Any] = {"size": "sm", "min_width": 160}
_PLACEHOLDER = "Search the prompts"
_HELP = "also <code>lora:NAME</code> <code>model:NAME</code> <code>seed:42</code> <code>date:2026-11</code> <code>-word</code>"
# Side by side on a wide page, below each other on a phone, where nothing would seem to happen.
_SHOW_DETAILS = """() => { if (innerWidth < 768) setTimeout(() => document.querySelector('#gallery-about')
    ?.closest('#gallery-details')?.scrollIntoView({behavior: 'smooth'}), 100); }"""
_FAVOURITES = " is:favourite"


class GalleryTab:
    """One page's Gallery tab. The chosen picture's id lives in the browser."""

    def __init__(self, services: Services, links: Links) -> None:
        self._service = GalleryService(services.data)
        self._links = links
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=310):
                self._lay_out_grid()
            with gr.Column(scale=3, min_width=310):
                self._lay_out_details()
        self._wire()

    def _lay_out_grid(self) -> None:
        with gr.Row(equal_height=True):
            self._search = gr.Textbox(
                "",
                show_label=False,
                placeholder=_PLACEHOLDER,
                max_lines=1,
                elem_id="gallery-search",
                container=False,
                scale=4,
            )
            self._only = gr.Checkbox(
                False, label="★ only", elem_id="gallery-favourites", container=False, min_width=120, scale=1
            )
        self._summary = gr.HTML("", elem_id="gallery-summary", padding=False)
        self._grid = tile_gallery("gallery-grid", "Pictures", 5)
        self._page = gr.State(0)
        self._ids = gr.State([])
        self._pager = Pager("gallery")
        self._undo = gr.Button("Undo the last delete", elem_id="gallery-undo", visible=False, **_SMALL)

    def _lay_out_details(self) -> None:
        self._hint = gr.HTML('<div class="hint">Choose a picture to see how it was made.</div>', padding=False)
        self._chosen = gr.Textbox("", elem_id="gallery-chosen", elem_classes="kept-in-browser")
        with gr.Column(visible=False, elem_id="gallery-details", min_width=280) as self._details:
            self._large = gr.HTML("", elem_id="gallery-large", padding=False)
            with gr.Row():
                self._send = gr.Button("Send to Generate", variant="primary", elem_id="gallery-send", **_ACTION)
                self._start_from = gr.Button("Start from it", elem_id="gallery-start-from", **_ACTION)
                self._star = gr.Button("☆ Favourite", elem_id="gallery-star", **_ACTION)
                self._delete = gr.Button("Delete", elem_id="gallery-delete", **_ACTION)
            self._about = gr.HTML("", elem_id="gallery-about", padding=False)

    def _wire(self) -> None:
        asked = [self._search, self._only]
        grid = [self._grid, self._page, self._ids, *self._pager.parts, self._summary, self._undo]
        details = [self._hint, self._details, self._chosen, self._large, self._about, self._star]
        self._links.on_show(self._show, [*asked, self._page], grid)
        gr.on(
            [self._search.change, self._only.change],
            handler(lambda search, only: self._show(search, only, 0)),
            asked,
            grid,
            trigger_mode="always_last",
            **_QUIET,
        )
        self._pager.wire(
            lambda search, only, page, step: self._show(search, only, page + step),
            [*asked, self._page],
            grid,
            show_progress_on=[self._grid],
        )
        self._grid.select(handler(self._choose), self._ids, details, **_QUIET).success(
            None, None, None, js=_SHOW_DETAILS, show_progress="hidden"
        )
        self._send.click(
            handler(self._send_recipe),
            self._chosen,
            [self._links.recipe_for_generate, self._links.tabs],
            show_progress="hidden",
        )
        self._start_from.click(
            handler(self._send_as_start),
            self._chosen,
            [self._links.recipe_for_generate, self._links.tabs],
            show_progress="hidden",
        )
        self._star.click(handler(self._toggle), [self._chosen, *asked, self._page], [*grid, self._star], **_QUIET)
        self._delete.click(
            handler(self._throw_away), [self._chosen, *asked, self._page], [*grid, *details], show_progress="hidden"
        )
        self._undo.click(handler(self._bring_back), [*asked, self._page], [*grid, *details], show_progress="hidden")

    def _show(self, search: str | None, only: bool, page: int) -> dict[Any, Any]:
        try:
            found = self._service.page(f"{search or ''}{_FAVOURITES if only else ''}", page)
        except ConfigError as error:
            # Half a date, while it is typed, is no mistake to interrupt for.
            return {self._summary: f'<div class="hint">{render.text(f"{error.message} {error.fix}")}</div>'}
        return self._show_page(found, is_search=bool((search or "").strip()) or only)

    def _show_page(self, found: GalleryPage, *, is_search: bool) -> dict[Any, Any]:
        count = f"{found.total:,} picture{'' if found.total == 1 else 's'}"
        empty = "Nothing fits the search." if is_search else "What you generate appears here."
        return {
            self._grid: gr.update(
                value=[str(self._service.tile(picture)) for picture in found.pictures],
                selected_index=None,
                visible=bool(found.total),
            ),
            self._page: found.page,
            self._ids: [picture.id for picture in found.pictures],
            **self._pager.show(found.page, found.num_pages),
            self._summary: f'<div class="hint">{count} · {_HELP}</div>' if found.total else render.empty(empty),
            self._undo: gr.update(visible=self._service.last_deleted() is not None),
        }

    def _choose(self, ids: list[str], event: gr.SelectData) -> dict[Any, Any]:
        index = event.index[0] if isinstance(event.index, list | tuple) else event.index
        if not 0 <= index < len(ids):
            return {}
        return self._show_picture(self._service.gallery.get(ids[index]))

    def _show_picture(self, picture: PictureInfo | None) -> dict[Any, Any]:
        if picture is None:
            return {self._hint: gr.update(visible=True), self._details: gr.update(visible=False), self._chosen: ""}
        url = render.file_url(self._service.gallery.path(picture))
        large = (
            f'<a href="{url}" target="_blank" rel="noopener"><img src="{url}" alt="{render.text(picture.prompt)}"></a>'
        )
        size = f"{picture.width} × {picture.height} px · {render.clock(picture.made)}"
        name = f'<div class="picture-name">{render.text(picture.name)}</div><div class="hint">{size}</div>'
        try:
            recipe = found_recipe(self._service.recipe(picture))
        except ConfigError as error:
            recipe = f'<div class="hint">{render.text(error.message)}</div>'
        return {
            self._hint: gr.update(visible=False),
            self._details: gr.update(visible=True),
            self._chosen: picture.id,
            self._large: f'<div class="gallery-picture">{large}</div>',
            self._about: f"{name}{recipe}",
            self._star: self._star_button(picture),
        }

    def _star_button(self, picture: PictureInfo) -> Any:
        is_marked = picture.name in self._service.gallery.favourites()
        return gr.update(value="★ Favourite" if is_marked else "☆ Favourite")

    def _send_recipe(self, picture_id: str) -> Any:
        found = self._service.recipe(self._service.gallery.get(picture_id))
        note("The recipe is in the form.")
        return send(found.settings, "generate")

    def _send_as_start(self, picture_id: str) -> Any:
        path = self._service.gallery.path(self._service.gallery.get(picture_id))
        note("The picture is the start picture of the form.")
        # With a size of 0 it keeps its own.
        start = {"init_image": str(path), "mask": "", "masked_area": "whole picture", "width": 0, "height": 0}
        return send(start, "generate")

    def _toggle(self, picture_id: str, search: str, only: bool, page: int) -> dict[Any, Any]:
        gallery = self._service.gallery
        picture = gallery.get(picture_id)
        gallery.mark(picture, is_favourite=picture.name not in gallery.favourites())
        return {**(self._show(search, only, page) if only else {}), self._star: self._star_button(picture)}

    def _throw_away(self, picture_id: str, search: str, only: bool, page: int) -> dict[Any, Any]:
        gallery = self._service.gallery
        gallery.delete(gallery.get(picture_id))
        note("The picture is in the trash folder.")
        return {**self._show(search, only, page), **self._show_picture(None)}

    def _bring_back(self, search: str, only: bool, page: int) -> dict[Any, Any]:
        trashed = self._service.last_deleted()
        if trashed is None:
            note("There is no picture in the trash.")
            return self._show(search, only, page)
        picture = self._service.gallery.restore(trashed)
        return {**self._show(search, only, page), **self._show_picture(picture)}


def build(services: Services, links: Links) -> None:
    """Lay out and wire the tab."""
    GalleryTab(services, links)
