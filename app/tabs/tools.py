"""The Tools tab: a form for each LoRA tool, made from its settings class, and the figures of its runs beside it."""

from __future__ import annotations

import html
from functools import partial
from typing import Any

import gradio as gr

from app import render
from app.fields import element_id, info, label
from app.form import Form
from app.links import Letter, Links
from app.messages import handler, note
from app.services.context import Services
from app.services.generation import GenerationService
from app.services.tools import ToolService
from app.stack_shown import SHOWN, with_shown
from app.tabs.lora_stack import LoraStackEditor, new_row
from app.tabs.tool_run import ToolRunView
from trainer.config.base import Level
from trainer.config.fields import FieldSpec, describe
from trainer.config.tools import TOOLS, ToolSettings, summary
from trainer.errors import ConfigError, Finding

TITLE = "Tools"
_QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_STACK = "loras"


class ToolForm:
    """The form of one tool, in a tab of its own."""

    def __init__(self, name: str, settings: type[ToolSettings], tab: gr.Tab, services: Services) -> None:
        self.name = name
        self.title = settings.title
        self._prefix = f"tool-{name}"
        specs = describe(settings)
        self.form = Form([spec for spec in specs if spec.kind != "list" or not spec.names], self._prefix)
        self.stack: LoraStackEditor | None = None
        self.choices: dict[str, list[gr.Dropdown]] = {"lora": [], "model": []}
        """The fields that name a LoRA or a base model."""
        gr.HTML(f'<div class="hint">{render.text(summary(settings))}</div>', padding=False)
        shown = [spec for spec in specs if spec.path not in self.form.fixed]
        for spec in shown:
            if spec.level is Level.BASIC:
                self._place(spec, tab, services)
        rest = [spec for spec in shown if spec.level is Level.ADVANCED]
        if rest:
            with gr.Accordion("Advanced", open=False, elem_id=f"{self._prefix}-advanced"):
                for spec in rest:
                    self._place(spec, tab, services)
        with gr.Column(elem_classes=["start-bar"], min_width=200):
            self.problems = gr.HTML("", elem_id=f"{self._prefix}-problems", padding=False)
            self.start = gr.Button(settings.title, variant="primary", elem_id=f"{self._prefix}-start")
        self.marked = gr.State([])

    def _place(self, spec: FieldSpec, tab: gr.Tab, services: Services) -> None:
        if not spec.names:
            self.form.place(spec.path)
        elif spec.kind == "list":
            library = GenerationService(services.data)
            self.stack = LoraStackEditor(library, tab, prefix=self._prefix, about=spec.help)
            self.form.send_also(SHOWN, self.stack.shown_js)
        else:
            field = gr.Dropdown(
                [],
                value=None if spec.is_required else spec.default,
                # A path is as good as a name of the list.
                allow_custom_value=True,
                label=label(spec),
                info=info(spec),
                elem_id=element_id(spec.path, self._prefix),
                interactive=True,
            )
            self.choices[spec.names].append(self.form.adopt(spec.path, field))

    @property
    def kept(self) -> list[Any]:
        """What a handler is given beside the form."""
        return [self.marked, *([self.stack.rows, self.stack.version] if self.stack else [])]

    def outputs(self) -> list[Any]:
        """What `show` updates."""
        return [self.problems, self.marked, *self.form.outputs()]

    def values(self, raw: dict[Any, Any]) -> dict[str, Any]:
        """The settings, not yet validated."""
        values = self.form.read(raw)
        if self.stack:
            values[_STACK] = [
                {"file": row["name"], "unet_weight": row["unet"], "text_encoder_weight": row["text"]}
                for row in with_shown(raw[self.stack.rows], raw[self.stack.version], raw[SHOWN])
                if row["on"]
            ]
        return values

    def show(self, findings: list[Finding], raw: dict[Any, Any]) -> dict[Any, Any]:
        """Updates that put each finding at its field, and all of them above the button."""
        updates, now_marked = self.form.mark(findings, raw[self.marked])
        told = [Finding("", f"LoRAs: {f.message}") if f.where.startswith(_STACK) else f for f in findings]
        text = html.escape(self.form.summary(told)).replace("\n", "<br>")
        problems = f'<div class="problems">{text}</div>' if findings else ""
        return {self.problems: problems, self.marked: now_marked, **updates}

    def is_empty(self, finding: Finding, values: dict[str, Any]) -> bool:
        """Whether a finding only says that something was not chosen yet."""
        return not values.get(finding.where, "-")


class ToolsTab:
    """One page's Tools tab."""

    def __init__(self, services: Services, links: Links) -> None:
        self._service = ToolService(services.data)
        self._links = links
        self._forms: list[ToolForm] = []
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=310):
                # Chips wrap; the row of tabs would hide those that do not fit in a menu. So the row itself is not shown.
                titles = [(settings.title, name) for name, settings in TOOLS.items()]
                picker = gr.Radio(titles, value=titles[0][1], label="Tool", elem_id="tool", interactive=True)
                with gr.Tabs(elem_id="tool-forms", selected=titles[0][1]) as tabs:
                    for name, settings in TOOLS.items():
                        with gr.Tab(settings.title, id=name) as tab:
                            self._forms.append(ToolForm(name, settings, tab, services))
                picker.input(lambda name: gr.update(selected=name), picker, tabs, **_QUIET)
            with gr.Column(scale=6, min_width=310):
                self._view = ToolRunView(services, self._service, links)
        for form in self._forms:
            self._wire(form)
        fields = [field for form in self._forms for kind in ("lora", "model") for field in form.choices[kind]]
        self._stacks = [form.stack for form in self._forms if form.stack]
        links.on_show(self._refresh, None, [*fields, *(stack.picker for stack in self._stacks)])
        rows = [part for stack in self._stacks for part in (stack.rows, stack.version)]
        links.lora_for_tools.change(
            handler(self._receive), {links.lora_for_tools, *rows}, [*self._single(), *rows], **_QUIET
        )

    def _single(self) -> list[gr.Dropdown]:
        """The field of each tool that names the LoRA it works on."""
        return [form.choices["lora"][0] for form in self._forms if form.choices["lora"]]

    def _wire(self, form: ToolForm) -> None:
        def check(raw: dict[Any, Any]) -> dict[Any, Any]:
            values = form.values(raw)
            findings = [
                finding for finding in self._service.faults(form.name, values) if not form.is_empty(finding, values)
            ]
            return form.show(findings, raw)

        def begin(raw: dict[Any, Any]) -> dict[Any, Any]:
            try:
                run_id = self._service.start(form.name, form.values(raw))
            except ConfigError as error:
                return form.show(list(error.findings), raw)
            note(f"{form.title} is in the queue.")
            return {**form.show([], raw), **self._view.choose(run_id)}

        changes = [*form.form.events(), *([form.stack.rows.change] if form.stack else [])]
        send, begun = form.form.send, [*form.outputs(), self._view.chosen, self._view.picker]
        send(partial(gr.on, changes), check, form.kept, form.outputs(), trigger_mode="always_last", **_QUIET)
        self._view.poll.after(send(form.start.click, begin, form.kept, begun, trigger_mode="once", **_QUIET))

    def _refresh(self) -> dict[Any, Any]:
        choices = {"lora": self._service.loras(), "model": self._service.models()}
        updates: dict[Any, Any] = {stack.picker: stack.choices() for stack in self._stacks}
        for form in self._forms:
            for kind, fields in form.choices.items():
                updates |= {field: gr.update(choices=choices[kind]) for field in fields}
        return updates

    def _receive(self, raw: dict[Any, Any]) -> dict[Any, Any]:
        letter = raw[self._links.lora_for_tools]
        if not letter:
            return gr.skip()
        name = str(Letter(*letter).content)
        names = self._service.loras()
        updates: dict[Any, Any] = {field: gr.update(choices=names, value=name) for field in self._single()}
        for stack in self._stacks:
            if all(row["name"] != name for row in raw[stack.rows]):
                updates |= {stack.rows: [*raw[stack.rows], new_row(name)], stack.version: raw[stack.version] + 1}
        return updates


def build(services: Services, links: Links) -> None:
    """Lay out and wire the tab."""
    ToolsTab(services, links)
