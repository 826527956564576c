"""The Dataset tab: choose or make a data set, see what is in it and what is wrong, write captions beside the pictures."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app import render
from app.links import Links, send
from app.messages import handler, note
from app.services.context import Services
from app.services.datasets import TEMPLATES, DatasetService, DatasetView, PictureView
from app.tabs import dataset_html
from trainer.dataset.importing import ImportReport

TITLE = "Dataset"
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}


class DatasetTab:
    """One page's Dataset tab. What is chosen lives in the browser: the list's value and the hidden name of the picture."""

    def __init__(self, services: Services, links: Links) -> None:
        self._service = DatasetService(services.data)
        self._links = links
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=310):
                self._lay_out_choice()
                self._lay_out_making()
                self._lay_out_changing()
            with gr.Column(scale=5, min_width=310):
                self._lay_out_pictures()
                self._lay_out_viewer()
        self._wire_choice()
        self._wire_making()
        self._wire_pictures()

    # --- layout --------------------------------------------------------------------------------------------------

    def _lay_out_choice(self) -> None:
        self._choice = gr.Dropdown([], label="Data set", elem_id="dataset-choice", interactive=True)
        self._about = gr.HTML("", elem_id="dataset-about", padding=False)
        self._trigger = gr.Textbox(
            "",
            label="Trigger word",
            info="Calls up what is learned. It is put in front of captions that lack it; empty for none.",
            placeholder="for example: zsy style",
            elem_id="dataset-trigger",
            max_length=200,
            interactive=True,
        )
        with gr.Row():
            self._train = gr.Button("Train on it →", variant="primary", elem_id="dataset-train", **_SMALL)
            self._again = gr.Button("↻ Look again", elem_id="dataset-again", **_SMALL)

    def _lay_out_making(self) -> None:
        with gr.Accordion("New data set", open=False, elem_id="dataset-new"):
            self._new_name = gr.Textbox(
                "", label="Name", placeholder="My drawings", elem_id="dataset-new-name", max_length=100
            )
            self._new_trigger = gr.Textbox(
                "", label="Trigger word", placeholder="optional", elem_id="dataset-new-trigger", max_length=200
            )
            self._drop = gr.File(
                label="Pictures, captions (.txt) or a zip", file_count="multiple", height=150, elem_id="dataset-drop"
            )
            with gr.Row():
                self._drop_folder = gr.UploadButton(
                    "Choose a folder…", file_count="directory", elem_id="dataset-drop-folder", **_SMALL
                )
                self._create = gr.Button("Create", variant="primary", elem_id="dataset-create", **_SMALL)
        with gr.Accordion("Use a folder on this machine", open=False, elem_id="dataset-link-open"):
            self._link_path = gr.Textbox(
                "",
                label="Path of the folder",
                info="Used where it is and only read: captions written here are kept in Inkwash's own folder.",
                placeholder="/home/me/Pictures/ink",
                elem_id="dataset-link-path",
            )
            self._link = gr.Button("Use this folder", variant="primary", elem_id="dataset-link", **_SMALL)

    def _lay_out_changing(self) -> None:
        with gr.Accordion("Add pictures", open=False, visible=False, elem_id="dataset-add-open") as self._add_open:
            self._add = gr.File(
                label="Pictures, captions (.txt) or a zip", file_count="multiple", height=150, elem_id="dataset-add"
            )
        with gr.Accordion("Caption all that have none", open=False, elem_id="dataset-captions-open"):
            self._template = gr.Dropdown(
                list(TEMPLATES),
                value=TEMPLATES[0][1],
                allow_custom_value=True,
                label="Template",
                info="Or your own words, with {name} for the file name's and {trigger} for the trigger word.",
                elem_id="dataset-template",
                interactive=True,
            )
            self._fill = gr.Button("Caption all that have none", variant="primary", elem_id="dataset-fill", **_SMALL)
        self._restore = gr.Button("Use left-out pictures again", visible=False, elem_id="dataset-restore", **_SMALL)
        self._delete = gr.Button("Delete data set…", visible=False, elem_id="dataset-delete", **_SMALL)
        with gr.Column(visible=False, elem_id="dataset-delete-ask") as self._ask:
            self._ask_text = gr.HTML("", padding=False)
            with gr.Row():
                self._delete_yes = gr.Button("Delete", variant="stop", elem_id="dataset-delete-yes", **_SMALL)
                self._delete_no = gr.Button("Keep it", elem_id="dataset-delete-no", **_SMALL)

    def _lay_out_pictures(self) -> None:
        self._summary = gr.HTML("", elem_id="dataset-summary", padding=False)
        self._problems = gr.HTML("", elem_id="dataset-problems", padding=False, visible=False)
        self._gallery = gr.Gallery(
            label="Pictures",
            show_label=False,
            columns=5,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="dataset-gallery",
            elem_classes="picture-grid",
        )
        self._page = gr.State(0)
        with gr.Row(visible=False, elem_id="dataset-pager") as self._pager:
            self._page_back = gr.Button("← Page", elem_id="dataset-page-back", **_SMALL)
            self._page_text = gr.HTML("", padding=False)
            self._page_on = gr.Button("Page →", elem_id="dataset-page-on", **_SMALL)

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

    # --- wiring --------------------------------------------------------------------------------------------------

    @property
    def _set_parts(self) -> list[Any]:
        return [
            *(self._about, self._trigger, self._train, self._add_open, self._restore, self._delete, self._ask),
            *(self._ask_text, *self._page_parts, *self._summary_parts, *self._viewer_parts),
        ]

    @property
    def _page_parts(self) -> list[Any]:
        return [self._gallery, self._page, self._pager, self._page_text]

    @property
    def _summary_parts(self) -> list[Any]:
        return [self._summary, self._problems]

    @property
    def _viewer_parts(self) -> list[Any]:
        return [self._viewer, self._image, self._facts, self._picture, self._caption]

    def _wire_choice(self) -> None:
        self._links.on_show(self._offer, [self._choice], [self._choice])
        shown: dict[str, Any] = {"outputs": self._set_parts, "show_progress_on": [self._gallery]}
        self._choice.change(handler(self._open), self._choice, **shown)
        self._again.click(handler(self._open), self._choice, **shown)
        for event in (self._trigger.blur, self._trigger.submit):
            event(handler(self._set_trigger), [self._choice, self._trigger], None, **_QUIET)
        # In the queue: outside of it gradio does not tell the page that a gr.State has changed, so no letter would arrive.
        self._train.click(
            handler(lambda name: send(name, "train")),
            self._choice,
            [self._links.dataset_for_train, self._links.tabs],
            show_progress="hidden",
        )
        self._restore.click(handler(self._bring_back), self._choice, None, show_progress="hidden").success(
            handler(self._open), self._choice, **shown
        )
        self._delete.click(lambda: gr.update(visible=True), None, self._ask, **_QUIET)
        self._delete_no.click(lambda: gr.update(visible=False), None, self._ask, **_QUIET)
        self._delete_yes.click(handler(self._trash), self._choice, [self._choice, self._ask], show_progress="hidden")

    def _wire_making(self) -> None:
        shown: dict[str, Any] = {"outputs": self._set_parts, "show_progress_on": [self._gallery]}
        self._drop_folder.upload(lambda files: files, self._drop_folder, self._drop, **_QUIET)
        # Hidden: gradio would lay an error over the fields, and hide what was typed.
        unseen: dict[str, Any] = {"show_progress": "hidden"}
        self._create.click(
            handler(self._make),
            [self._new_name, self._new_trigger, self._drop],
            [self._choice, self._new_name, self._new_trigger, self._drop],
            trigger_mode="once",
            **unseen,
        )
        for event in (self._link.click, self._link_path.submit):
            event(handler(self._use_folder), self._link_path, [self._choice, self._link_path], **unseen)
        self._add.upload(
            handler(self._add_files), [self._choice, self._add], [self._choice, self._add], **unseen
        ).success(handler(self._open), self._choice, **shown)
        self._fill.click(handler(self._fill_captions), [self._choice, self._template], None, **unseen).success(
            handler(self._open), self._choice, **shown
        )

    def _wire_pictures(self) -> None:
        for button, step in ((self._page_back, -1), (self._page_on, 1)):
            button.click(
                handler(lambda name, page, step=step: self._turn(name, page + step)),
                [self._choice, self._page],
                self._page_parts,
                show_progress_on=[self._gallery],
            )
        self._gallery.select(handler(self._look), [self._choice, self._page], self._viewer_parts, **_QUIET)
        written = [self._choice, self._picture, self._caption]
        for event in (self._caption.blur, self._caption.submit):
            event(handler(self._save), written, self._summary_parts, **_QUIET)
        for button, step in ((self._back, -1), (self._on, 1)):
            button.click(
                handler(lambda name, picture, caption, step=step: self._save_and_go(name, picture, caption, step)),
                written,
                [*self._viewer_parts, *self._summary_parts],
                **_QUIET,
            )
        self._remove.click(
            handler(self._take_out),
            [self._choice, self._picture, self._page],
            [self._choice, *self._page_parts, *self._summary_parts, *self._viewer_parts, self._restore],
            show_progress="hidden",
        )

    # --- choosing ------------------------------------------------------------------------------------------------

    def _offer(self, chosen: str | None) -> Any:
        choices = self._service.choices()
        names = [name for _, name in choices]
        return gr.update(choices=choices, value=chosen if chosen in names else next(iter(names), None))

    def _open(self, name: str | None, progress: gr.Progress = gr.Progress()) -> dict[Any, Any]:  # noqa: B008 - gradio's way
        if not name:
            return {self._summary: render.empty("No data set is chosen.")}
        view = self._service.view(name, lambda done, total: progress((done, total), desc="Looking at the pictures"))
        info = view.info
        return {
            self._about: dataset_html.about(view),
            self._trigger: info.trigger_word,
            self._train: gr.update(interactive=bool(view.scan.usable)),
            self._add_open: gr.update(visible=info.is_own),
            self._restore: gr.update(visible=bool(view.num_excluded)),
            self._delete: gr.update(visible=not info.is_bundled),
            self._ask: gr.update(visible=False),
            self._ask_text: dataset_html.deletion(view),
            **self._show_page(view, 0),
            **self._show_summary(view),
            **self._show_picture(self._service.picture(view, 0)),
        }

    def _set_trigger(self, name: str | None, word: str) -> None:
        if name and self._service.store.get(name).trigger_word != " ".join(word.split()):
            self._service.store.set_trigger_word(name, word)
            note("The trigger word is saved.")

    def _bring_back(self, name: str) -> None:
        self._service.store.restore_pictures(name)

    def _trash(self, name: str) -> tuple[Any, Any]:
        self._service.store.delete(name)
        note("The data set is in the trash folder.")
        return self._offer(None), gr.update(visible=False)

    # --- making --------------------------------------------------------------------------------------------------

    def _make(self, name: str, trigger_word: str, files: list[str] | None) -> tuple[Any, ...]:
        if files:
            note("Bringing the pictures in…")
        info, report = self._service.create(name, files or [], trigger_word)
        _tell(report)
        return self._offer(info.name), "", "", None

    def _use_folder(self, path: str) -> tuple[Any, str]:
        return self._offer(self._service.store.link(path).name), ""

    def _add_files(self, name: str, files: list[str] | None) -> tuple[Any, None]:
        _tell(self._service.store.add_files(name, files or []))
        return self._offer(name), None

    def _fill_captions(self, name: str, template: str) -> None:
        number = self._service.caption_missing(name, template)
        note(f"{number} captions written." if number else "Every picture has a caption already.")

    # --- pictures ------------------------------------------------------------------------------------------------

    def _turn(self, name: str, page: int) -> dict[Any, Any]:
        return self._show_page(self._service.view(name), page)

    def _look(self, name: str, page: int, event: gr.SelectData) -> dict[Any, Any]:
        view = self._service.view(name)
        return self._show_picture(self._service.picture(view, self._service.on_page(page, _tile_index(event))))

    def _save(self, name: str | None, picture: str, caption: str) -> Any:
        if not name or not picture or not self._service.save_caption(name, picture, caption):
            return gr.skip()
        return self._show_summary(self._service.view(name))

    def _save_and_go(self, name: str, picture: str, caption: str, step: int) -> dict[Any, Any]:
        self._service.save_caption(name, picture, caption)
        view = self._service.view(name)
        shown = self._service.picture(view, view.index_of(picture) + step)
        return {**self._show_picture(shown), **self._show_summary(view)}

    def _take_out(self, name: str, picture: str, page: int) -> dict[Any, Any]:
        index = self._service.view(name).index_of(picture)
        trashed = self._service.store.remove_picture(name, picture)
        note(
            "The picture is in the trash folder." if trashed else "The picture is left out; its file stays where it is."
        )
        view = self._service.view(name)
        return {
            self._choice: self._offer(name),
            **self._show_page(view, page),
            **self._show_summary(view),
            **self._show_picture(self._service.picture(view, min(index, max(0, len(view.pictures) - 1)))),
            self._restore: gr.update(visible=bool(view.num_excluded)),
        }

    # --- showing -------------------------------------------------------------------------------------------------

    def _show_page(self, view: DatasetView, page: int) -> dict[Any, Any]:
        page = max(0, min(page, view.num_pages - 1))
        return {
            self._gallery: gr.update(value=self._service.tiles(view, page), selected_index=None),
            self._page: page,
            self._pager: gr.update(visible=view.num_pages > 1),
            self._page_text: f'<div class="page-text">{page + 1} of {view.num_pages}</div>',
        }

    def _show_summary(self, view: DatasetView) -> dict[Any, Any]:
        rows = view.problem_rows()
        title = f'<div class="section-title">{render.text(view.info.title)}</div>'
        line = f'<div class="plan-line" role="status">{render.text(view.summary)}</div>'
        return {
            self._summary: title + line,
            self._problems: gr.update(value=dataset_html.problem_list(rows), visible=bool(rows)),
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
            self._caption: facts.caption or "",
        }


def _tile_index(event: gr.SelectData) -> int:
    return event.index[0] if isinstance(event.index, (list, tuple)) else event.index


def _tell(report: ImportReport) -> None:
    note(report.summary())
    if report.left_out:
        shown = [str(finding) for finding in report.left_out[:5]]
        more = [f"… and {len(report.left_out) - 5} more"] if len(report.left_out) > 5 else []
        note("Left out: " + "; ".join(shown + more))


def build(services: Services, links: Links) -> DatasetTab:
    """Lay the tab out."""
    return DatasetTab(services, links)
