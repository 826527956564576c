"""The LoRAs tab: the library of trained and imported files, what each says of itself, and what can be done with it."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from app import render
from app.links import Letter, Links, send
from app.messages import handler, note
from app.services.context import Services
from app.services.library import LibraryService, facts
from app.tabs.galleries import tile_gallery
from trainer.library import LibraryEntry
from trainer.lora_recipe import training_settings
from trainer.units import size

TITLE = "LoRAs"
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_MAX_METADATA_ROWS = 200
_MAX_METADATA_VALUE = 1000


class LorasTab:
    """One page's LoRAs tab. The chosen LoRA's name lives in the browser."""

    def __init__(self, services: Services, links: Links) -> None:
        self._service = LibraryService(services.data)
        self._links = links
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=310):
                self._lay_out_grid()
            with gr.Column(scale=3, min_width=310):
                self._lay_out_import()
                self._lay_out_details()
        self._wire()

    def _lay_out_grid(self) -> None:
        self._search = gr.Textbox(
            "",
            show_label=False,
            placeholder="Search by name, trigger word or base model",
            elem_id="lora-search",
            container=False,
        )
        self._summary = gr.HTML("", elem_id="lora-summary", padding=False)
        self._grid = tile_gallery("lora-grid", "LoRAs", 4)
        self._names = gr.State([])

    def _lay_out_import(self) -> None:
        self._drop = gr.File(
            label="Import .safetensors, with a preview of its name",
            file_count="multiple",
            height=150,
            elem_id="lora-import",
        )
        with gr.Accordion("Trash", open=False, visible=False, elem_id="lora-trash") as self._trash_open:
            self._trash = gr.Dropdown([], label="Deleted LoRAs", elem_id="lora-trashed", interactive=True)
            self._restore = gr.Button("Bring back", elem_id="lora-restore", **_SMALL)

    def _lay_out_details(self) -> None:
        self._chosen = gr.Textbox("", elem_id="lora-chosen", elem_classes="kept-in-browser")
        with gr.Column(visible=False, elem_id="lora-details") as self._details:
            self._image = gr.Image(
                show_label=False,
                interactive=False,
                buttons=["fullscreen"],
                height=280,
                elem_id="lora-image",
                elem_classes="picture-large",
            )
            self._about = gr.HTML("", elem_id="lora-about", padding=False)
            with gr.Row():
                self._use = gr.Button("Use in Generate →", variant="primary", elem_id="lora-use", **_SMALL)
                self._download = gr.HTML("", elem_id="lora-download", padding=False)
            with gr.Row():
                self._again = gr.Button("Train again with these settings →", elem_id="lora-again", **_SMALL)
                self._tools = gr.Button("Tools, metadata →", elem_id="lora-tools", **_SMALL)
            with gr.Row():
                self._new_name = gr.Textbox("", label="Name", elem_id="lora-name", max_length=100, interactive=True)
                self._rename = gr.Button("Rename", elem_id="lora-rename", scale=0, **_SMALL)
            with gr.Row():
                self._preview = gr.UploadButton(
                    "Choose a preview…", file_types=["image"], elem_id="lora-preview", **_SMALL
                )
                self._delete = gr.Button("Delete…", elem_id="lora-delete", **_SMALL)
            with gr.Column(visible=False, elem_id="lora-delete-ask") as self._ask:
                self._ask_text = gr.HTML("", padding=False)
                with gr.Row():
                    self._delete_yes = gr.Button("Delete", variant="stop", elem_id="lora-delete-yes", **_SMALL)
                    self._delete_no = gr.Button("Keep it", elem_id="lora-delete-no", **_SMALL)
            self._metadata = gr.HTML("", elem_id="lora-metadata", padding=False)

    def _wire(self) -> None:
        grid = [self._grid, self._names, self._summary, self._trash_open, self._trash]
        details = [
            *(self._details, self._image, self._about, self._download, self._new_name, self._chosen),
            *(self._ask, self._ask_text, self._use, self._again, self._metadata),
        ]
        # Gradio would lay an error over the fields, and hide what was typed.
        hidden: dict[str, Any] = {"show_progress": "hidden"}
        self._links.on_show(self._list, [self._search], grid)
        self._search.change(handler(self._list), self._search, grid, **_QUIET)
        self._grid.select(handler(self._choose), self._names, details, **hidden)
        self._drop.upload(handler(self._import), [self._drop, self._search], [*grid, *details, self._drop], **hidden)
        self._use.click(
            handler(self._send),
            self._chosen,
            [self._links.lora_for_generate, self._links.tabs],
            show_progress="hidden",  # and in the queue: outside of it no gr.State tells the page that it has changed
        )
        self._again.click(
            handler(self._send_settings),
            self._chosen,
            [self._links.recipe_for_train, self._links.tabs],
            show_progress="hidden",
        )
        self._tools.click(
            lambda name: send(name, "tools"),
            self._chosen,
            [self._links.lora_for_tools, self._links.tabs],
            show_progress="hidden",
        )
        self._links.lora_for_library.change(
            handler(self._receive), self._links.lora_for_library, [*grid, *details, self._search], **hidden
        )
        for event in (self._rename.click, self._new_name.submit):
            event(handler(self._give_name), [self._chosen, self._new_name, self._search], [*grid, *details], **hidden)
        self._preview.upload(
            handler(self._give_preview), [self._chosen, self._preview, self._search], [*grid, *details], **hidden
        )
        self._delete.click(lambda: gr.update(visible=True), None, self._ask, **_QUIET)
        self._delete_no.click(lambda: gr.update(visible=False), None, self._ask, **_QUIET)
        self._delete_yes.click(handler(self._throw_away), [self._chosen, self._search], [*grid, *details], **hidden)
        self._restore.click(handler(self._bring_back), [self._trash, self._search], [*grid, *details], **hidden)

    # --- what the user does --------------------------------------------------------------------------------------

    def _list(self, search: str) -> dict[Any, Any]:
        entries = self._service.entries(search)
        tiles = self._service.tiles(entries)
        trashed = self._service.trashed()
        when = [time.strftime("%Y-%m-%d %H:%M", time.localtime(item.deleted)) for item in trashed]
        choices = [(f"{item.name} ({at})", item.folder.name) for item, at in zip(trashed, when, strict=True)]
        return {
            self._grid: gr.update(value=[(str(tile.picture), tile.label) for tile in tiles], visible=bool(tiles)),
            self._names: [tile.name for tile in tiles],
            self._summary: _summary(entries, search),
            self._trash_open: gr.update(visible=bool(trashed)),
            self._trash: gr.update(choices=choices, value=choices[0][1] if choices else None),
        }

    def _choose(self, names: list[str], event: gr.SelectData) -> Any:
        index = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        return self._show(names[index]) if 0 <= index < len(names) else gr.skip()

    def _import(self, files: list[str] | None, search: str) -> dict[Any, Any]:
        result = self._service.import_files(files or [])
        if result.names:
            note(f"In the library: {', '.join(result.names)}.")
        for finding in result.refused:
            gr.Warning(render.text(finding), duration=12, title="Not imported")
        # What was imported must be seen, so a search that would hide it is put aside.
        listed = self._list("" if result.names else search)
        shown = self._show(result.names[-1]) if result.names else {}
        return {**listed, **shown, self._drop: None}

    def _send(self, name: str) -> Any:
        return send(str(self._service.entry(name).path), "generate")

    def _send_settings(self, name: str) -> Any:
        """To the Train tab; a file without settings is refused here, with its reason."""
        path = self._service.entry(name).path
        training_settings(path)
        return send(str(path), "train")

    def _receive(self, letter: Letter | None) -> Any:
        if not letter:
            return gr.skip()
        # A search that would hide it is put aside.
        return {**self._list(""), **self._show(str(Letter(*letter).content)), self._search: ""}

    def _give_name(self, name: str, new_name: str, search: str) -> dict[Any, Any]:
        renamed = self._service.rename(name, new_name)
        return {**self._list(search), **self._show(renamed)}

    def _give_preview(self, name: str, picture: str, search: str) -> dict[Any, Any]:
        self._service.set_preview(name, picture)
        return {**self._list(search), **self._show(name)}

    def _throw_away(self, name: str, search: str) -> dict[Any, Any]:
        self._service.delete(name)
        note("The LoRA is in the trash folder.")
        return {**self._list(search), self._details: gr.update(visible=False), self._chosen: ""}

    def _bring_back(self, folder_name: str | None, search: str) -> dict[Any, Any]:
        return {**self._show(self._service.restore(folder_name or "")), **self._list(search)}

    # --- showing -------------------------------------------------------------------------------------------------

    def _show(self, name: str) -> dict[Any, Any]:
        entry = self._service.entry(name)
        return {
            self._details: gr.update(visible=True),
            self._image: str(self._service.picture(entry, 768)),
            self._about: self._about_html(entry),
            self._download: _download_link(entry),
            self._new_name: entry.name.rsplit("/", 1)[-1],
            self._chosen: entry.name,
            self._ask: gr.update(visible=False),
            self._ask_text: f"<div>Move ‘{render.text(entry.name)}’ to the trash folder?</div>",
            self._use: gr.update(interactive=entry.info is not None),
            self._again: gr.update(interactive=entry.info is not None),
            self._metadata: _metadata_html(entry),
        }

    def _about_html(self, entry: LibraryEntry) -> str:
        head = f'<div class="section-title">{render.text(entry.title)}</div>'
        if entry.info is None:
            return f'{head}<div class="run-error">{render.text(entry.problem)}</div>'
        rows = [
            *facts(entry.info),
            ("File", f"{entry.path.name}, {size(entry.size_bytes)}, {render.clock(entry.modified)}"),
            ("SHA-256", self._service.sha256(entry)),
        ]
        return head + render.definitions(rows)


def _summary(entries: list[LibraryEntry], search: str) -> str:
    if entries:
        total = size(sum(entry.size_bytes for entry in entries))
        return f'<div class="plan-line">{len(entries)} {"LoRA" if len(entries) == 1 else "LoRAs"}, {total}</div>'
    if search.strip():
        return render.empty("No LoRA has these words.")
    return render.empty("No LoRAs yet. Train one, or drop a .safetensors file to import it.")


def _download_link(entry: LibraryEntry) -> str:
    # A link, not gr.DownloadButton: that one copies the file, which may have hundreds of megabytes, when it is only looked at.
    url, name = render.text(render.file_url(entry.path)), render.text(entry.path.name)
    return f'<a class="download-link" href="{url}" download="{name}">↓ Download</a>'


def _metadata_html(entry: LibraryEntry) -> str:
    metadata = dict(entry.info.metadata) if entry.info else {}
    if not metadata:
        return ""
    rows = [
        (
            key,
            value
            if len(value) <= _MAX_METADATA_VALUE
            else f"{value[:_MAX_METADATA_VALUE]}… ({len(value):,} characters)",
        )
        for key, value in sorted(metadata.items())[:_MAX_METADATA_ROWS]
    ]
    return f'<details class="metadata"><summary>Metadata of the file ({len(metadata)})</summary>{render.definitions(rows)}</details>'


def build(services: Services, links: Links) -> LorasTab:
    """Lay the tab out."""
    return LorasTab(services, links)
