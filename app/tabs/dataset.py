"""The Dataset tab: choose or make a data set, and work on it in sections."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import gradio as gr

from app import render
from app.links import Links, send
from app.messages import handler, note
from app.services.context import Services
from app.services.datasets import TEMPLATES, DatasetService
from app.tabs import dataset_html
from app.tabs.dataset_bringing import Bringing
from app.tabs.dataset_fields import FetchFields, TrainingFields
from app.tabs.dataset_page import DatasetPage, news, note_left_out
from app.uploads import KEEPS_FOLDERS, names_js, with_names
from trainer.dataset.history import Change
from trainer.dataset.scan import Progress
from trainer.errors import DatasetError

TITLE = "Dataset"
SECTIONS = ("pictures", "captions", "caption", "check", "prepare", "history")
"""What can be done with the pictures: files `app/tabs/dataset_<name>.py`, each with TITLE and build(services, page)."""
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 90}
_TAKEN: dict[str, Any] = {
    "label": "Pictures, captions (.txt), folders or a zip",
    "file_count": "multiple",
    "height": 150,
    "elem_classes": KEEPS_FOLDERS,
}


class DatasetTab:
    """One page's Dataset tab. What is chosen lives in the browser."""

    def __init__(self, services: Services, links: Links) -> None:
        self._service = DatasetService(services.data)
        self._links = links
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=310):
                self._lay_out_choice()
                self._bringing = Bringing(services)
                self._lay_out_making(services)
                self._lay_out_changing()
            with gr.Column(scale=5, min_width=310):
                self._page = self._lay_out_sections(services)
        self._wire_choice()
        self._wire_making()

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

    def _lay_out_making(self, services: Services) -> None:
        with gr.Accordion("New data set", open=False, elem_id="dataset-new"):
            self._new_name = gr.Textbox(
                "", label="Name", placeholder="My drawings", elem_id="dataset-new-name", max_length=100
            )
            self._new_trigger = gr.Textbox(
                "", label="Trigger word", placeholder="optional", elem_id="dataset-new-trigger", max_length=200
            )
            self._drop = gr.File(elem_id="dataset-drop", **_TAKEN)
            self._names = gr.JSON(visible=False)
            with gr.Row():
                # What is chosen goes into the area above: see app.uploads.
                gr.UploadButton("Choose a folder…", file_count="directory", elem_id="dataset-drop-folder", **_SMALL)
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
        self._fetch = FetchFields(services)

    def _lay_out_changing(self) -> None:
        with gr.Accordion("Add pictures", open=False, visible=False, elem_id="dataset-add-open") as self._add_open:
            self._add = gr.File(elem_id="dataset-add", **_TAKEN)
        self._training = TrainingFields(self._service)
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
        with gr.Row():
            self._undo = gr.Button("↶ Undo", elem_id="dataset-undo", **_SMALL)
            self._redo = gr.Button("↷ Redo", elem_id="dataset-redo", **_SMALL)
        self._restore = gr.Button("Use left-out pictures again", visible=False, elem_id="dataset-restore", **_SMALL)
        self._discard = gr.Button(
            "Move left-out pictures to the trash", visible=False, elem_id="dataset-discard", **_SMALL
        )
        self._delete = gr.Button("Delete data set…", visible=False, elem_id="dataset-delete", **_SMALL)
        with gr.Column(visible=False, elem_id="dataset-delete-ask") as self._ask:
            self._ask_text = gr.HTML("", padding=False)
            with gr.Row():
                self._delete_yes = gr.Button("Delete", variant="stop", elem_id="dataset-delete-yes", **_SMALL)
                self._delete_no = gr.Button("Keep it", elem_id="dataset-delete-no", **_SMALL)

    def _lay_out_sections(self, services: Services) -> DatasetPage:
        summary = gr.HTML("", elem_id="dataset-summary", padding=False)
        problems = gr.HTML("", elem_id="dataset-problems", padding=False, visible=False)
        page = DatasetPage(self._choice, gr.State(0.0), gr.State(SECTIONS[0]), summary, problems, self._bringing)
        modules = {name: importlib.import_module(f"app.tabs.dataset_{name}") for name in SECTIONS}
        with gr.Tabs(elem_id="dataset-sections"):
            for name, module in modules.items():
                with gr.Tab(module.TITLE, id=name, elem_id=f"dataset-section-{name}") as page.section:
                    module.build(services, page)
        page.section = None
        return page

    # --- wiring --------------------------------------------------------------------------------------------------

    @property
    def _set_parts(self) -> list[Any]:
        return [
            *(self._about, self._trigger, self._train, self._add_open, self._restore, self._discard, self._delete),
            *(self._ask, self._ask_text, *self._page.summary_parts, *self._training.parts),
        ]

    def _wire_choice(self) -> None:
        bringing = self._bringing
        self._links.on_show(self._show, [self._choice, bringing.run], [self._choice, *bringing.parts])
        changed = self._page.changed
        shown: dict[str, Any] = {"show_progress_on": [self._page.summary]}
        for event in (self._choice.change, self._again.click):
            event(handler(self._open), self._choice, [*self._set_parts, changed], **shown)
        changed.change(handler(self._describe), self._choice, self._set_parts, show_progress="hidden")
        for button, step in ((self._undo, self._service.store.undo), (self._redo, self._service.store.redo)):
            button.click(
                handler(lambda name, step=step: _step(name, step)), self._choice, changed, show_progress="hidden"
            )
        self._training.wire(self._choice, changed)
        for event in (self._trigger.blur, self._trigger.submit):
            event(handler(self._set_trigger), [self._choice, self._trigger], None, **_QUIET)
        # In the queue: outside of it gradio does not tell the page that a gr.State has changed, so no letter would arrive.
        self._train.click(
            handler(lambda name: send(name, "train")),
            self._choice,
            [self._links.dataset_for_train, self._links.tabs],
            show_progress="hidden",
        )
        self._restore.click(handler(self._bring_back), self._choice, changed, show_progress="hidden")
        self._discard.click(handler(self._discard_files), self._choice, changed, show_progress="hidden")
        self._delete.click(lambda: gr.update(visible=True), None, self._ask, **_QUIET)
        self._delete_no.click(lambda: gr.update(visible=False), None, self._ask, **_QUIET)
        self._delete_yes.click(handler(self._trash), self._choice, [self._choice, self._ask], show_progress="hidden")

    def _wire_making(self) -> None:
        changed, bringing = self._page.changed, self._bringing
        # Hidden: gradio would lay an error over the fields, and hide what was typed.
        unseen: dict[str, Any] = {"show_progress": "hidden"}
        self._create.click(
            handler(self._make),
            [bringing.run, self._new_name, self._new_trigger, self._drop, self._names],
            bringing.parts,
            trigger_mode="once",
            js=names_js(3),
            **unseen,
        )
        bringing.empties("new", self._new_name, self._new_trigger, self._drop)
        for event in (self._link.click, self._link_path.submit):
            event(handler(self._use_folder), self._link_path, [self._choice, self._link_path], **unseen)
        self._fetch.wire(self._offer, self._choice, changed)
        self._add.upload(
            handler(self._add_files),
            [bringing.run, self._choice, self._add, self._names],
            bringing.parts,
            js=names_js(2),
            **unseen,
        )
        bringing.empties("added", None, self._add)
        bringing.wire(self._offer, self._choice, changed)
        self._fill.click(handler(self._fill_captions), [self._choice, self._template], changed, **unseen)

    # --- choosing ------------------------------------------------------------------------------------------------

    def _offer(self, chosen: str | None) -> Any:
        choices = self._service.choices()
        names = [name for _, name in choices]
        return gr.update(choices=choices, value=chosen if chosen in names else next(iter(names), None))

    def _show(self, chosen: str | None, followed: str) -> dict[Any, Any]:
        return {self._choice: self._offer(chosen), **self._bringing.find(followed)}

    def _open(self, name: str | None, progress: gr.Progress = gr.Progress()) -> dict[Any, Any]:  # noqa: B008 - gradio's way
        shown = self._describe(name, lambda done, total: progress((done, total), desc="Looking at the pictures"))
        return {**shown, self._page.changed: news()}

    def _describe(self, name: str | None, progress: Progress | None = None) -> dict[Any, Any]:
        if not name:
            return self._nothing(render.empty("No data set is chosen."))
        try:
            view = self._service.view(name, progress)
        except DatasetError as error:
            return {**self._nothing(dataset_html.cannot_open(name, error)), **self._deletable(name)}
        info = view.info
        return {
            self._about: dataset_html.about(view),
            self._trigger: info.trigger_word,
            self._train: gr.update(interactive=bool(view.scan.usable)),
            self._add_open: gr.update(visible=info.is_own),
            self._restore: gr.update(visible=bool(view.num_excluded)),
            self._discard: gr.update(visible=bool(view.num_excluded) and info.is_own),
            self._delete: gr.update(visible=not info.is_bundled),
            self._ask: gr.update(visible=False),
            self._ask_text: dataset_html.deletion(info, len(view.pictures)),
            **self._training.show(info),
            **self._page.show_summary(view),
        }

    def _nothing(self, summary: str) -> dict[Any, Any]:
        """What is shown where no data set is open: nothing of the one before."""
        hidden = (self._add_open, self._restore, self._discard, self._delete, self._ask, self._page.problems)
        return {
            **{part: gr.update(visible=False) for part in hidden},
            **self._training.empty(),
            self._about: "",
            self._trigger: "",
            self._train: gr.update(interactive=False),
            self._page.summary: summary,
        }

    def _deletable(self, name: str) -> dict[Any, Any]:
        """One that cannot be opened can be deleted all the same."""
        info = next((info for info in self._service.store.list() if info.name == name and not info.is_bundled), None)
        if info is None:
            return {}
        text = dataset_html.deletion(info, info.num_pictures)
        return {self._delete: gr.update(visible=True), self._ask_text: text}

    def _set_trigger(self, name: str | None, word: str) -> None:
        if name and self._service.store.get(name).trigger_word != " ".join(word.split()):
            self._service.store.set_trigger_word(name, word)
            note("The trigger word is saved.")

    def _bring_back(self, name: str) -> float:
        self._service.store.restore_pictures(name)
        return news()

    def _discard_files(self, name: str) -> float:
        note(f"{len(self._service.store.discard_left_out(name))} pictures are in the trash folder.")
        return news()

    def _trash(self, name: str) -> tuple[Any, Any]:
        self._service.store.delete(name)
        note("The data set is in the trash folder.")
        return self._offer(None), gr.update(visible=False)

    # --- making --------------------------------------------------------------------------------------------------

    def _make(
        self, followed: str, name: str, trigger_word: str, files: list[str] | None, names: list[str] | None
    ) -> dict[Any, Any]:
        def start() -> str:
            return self._service.start_import(name, with_names(files, names), trigger_word, is_new=True)

        return self._bringing.begin(followed, start, made=name)

    def _use_folder(self, path: str) -> tuple[Any, str]:
        linked = self._service.use_folder(path)
        first, *others = linked.sets
        if others:
            note(f"{len(linked.sets)} data sets, one for each numbered folder, with its number as repeats.")
        note_left_out([str(finding) for finding in linked.left_out], len(linked.left_out))
        return self._offer(first.name), ""

    def _add_files(self, followed: str, name: str, files: list[str] | None, names: list[str] | None) -> dict[Any, Any]:
        return self._bringing.begin(
            followed, lambda: self._service.start_import(name, with_names(files, names), is_new=False)
        )

    def _fill_captions(self, name: str, template: str) -> float:
        number = self._service.caption_missing(name, template)
        note(f"{number} captions written." if number else "Every picture has a caption already.")
        return news()


def _step(name: str, step: Callable[[str], Change | None]) -> Any:
    change = step(name)
    if change is None:
        note("There is nothing more to undo or redo.")
        return gr.skip()
    note(f"{change.title}: taken back." if step.__name__ == "undo" else f"{change.title}: done again.")
    return news()


def build(services: Services, links: Links) -> DatasetTab:
    """Lay the tab out."""
    return DatasetTab(services, links)
