"""Settings as a form: the widgets of all fields, values <-> settings, a fault -> the field that it belongs to.

Where a field stands is the tab's business (`place`, `place_groups`); what it is called, explains and allows comes from
the schema (`app.fields`).
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.components.dataframe import DataframeData

from app.fields import GROUP_TITLES, element_id, from_widget, info, label, make_widget, to_widget
from app.messages import handler
from trainer.config.base import Level
from trainer.config.fields import FieldSpec
from trainer.config.loading import nest
from trainer.errors import Finding

_FIELD_WIDTH = 230


class Form:
    """The widgets of a schema's fields. Built inside a gradio page.

    Args:
        specs: the fields.
        prefix: of the HTML ids.
        values: what the fields show at first, by path; the defaults where missing.
    """

    def __init__(self, specs: Iterable[FieldSpec], prefix: str, values: Mapping[str, Any] | None = None) -> None:
        self.specs = {spec.path: spec for spec in specs}
        self.widgets: dict[str, Component] = {}
        # A choice of one is no choice: it is kept, not shown.
        self.fixed = {spec.path: spec.choices[0] for spec in self.specs.values() if len(spec.choices) == 1}
        self._prefix = prefix
        self._values = dict(values or {})
        self._parcel = gr.JSON(None, visible=False)
        self._also: dict[str, str] = {}
        self._in_group: set[str] = set()

    def shown_first(self, path: str) -> Any:
        """What the field shows when the page is made."""
        value = self._values.get(path)
        return self.specs[path].default if value is None else value

    def place(self, path: str, **options: Any) -> Any:
        """Make the widget of a field here. Each field is placed once."""
        spec = self.specs[path]
        return self.adopt(path, make_widget(spec, self._prefix, self.shown_first(path), **options))

    def adopt(self, path: str, widget: Component) -> Any:
        """Let a widget made by hand be that of a field."""
        if path in self.widgets or path in self.fixed or path not in self.specs:
            raise ValueError(f"{path} cannot be placed here")
        self.widgets[path] = widget
        return widget

    def place_groups(self, level: Level, below: Mapping[str, Callable[[], None]] | None = None) -> None:
        """Place every field of a level that has no place yet, an accordion a group; `below` builds what stands under a group's fields."""
        groups: dict[str, list[FieldSpec]] = {}
        for spec in self.specs.values():
            if spec.level is level and spec.path not in self.widgets and spec.path not in self.fixed:
                groups.setdefault(spec.group, []).append(spec)
        for group, specs in groups.items():
            with gr.Accordion(GROUP_TITLES.get(group, group), open=False, elem_id=element_id(group, "group")):
                if specs[0].group_help:
                    gr.HTML(f'<div class="hint">{_plain(specs[0].group_help)}</div>', padding=False)
                # One row that wraps: a row a pair would double the number of components, and with it the time to open the page.
                with gr.Row(equal_height=False):
                    for spec in specs:
                        self.place(spec.path, min_width=_FIELD_WIDTH)
                        self._in_group.add(spec.path)
                if below and group in below:
                    below[group]()

    def send_also(self, name: str, js: str) -> None:
        """Let every event that is wired from here on bring along what a function of the browser gives, as `raw[name]`."""
        self._also[name] = js

    def send(
        self,
        trigger: Callable[..., Any],
        function: Callable[[dict[Any, Any]], Any],
        others: Sequence[Component],
        outputs: Sequence[Component],
        **options: Any,
    ) -> Any:
        """Let an event call a function with what all widgets and `others` hold, as a dict. Returns the event, for `.success`.

        The browser packs the widgets' values into one: gradio 6.31 tells each input of an event that was answered once of all
        later events of the page, each after a search of the whole page, which took half of a processor core for two forms.

        Args:
            trigger: as `button.click`, `dependency.success` or `functools.partial(gr.on, events)`.
        """
        fields, also = self.outputs(), dict(self._also)
        answer = handler(function)

        def unpacked(values: Sequence[Any] | None, *kept: Any) -> Any:
            of_fields, rest = (values or ())[: len(fields)], (values or ())[len(fields) :]
            raw = {field: _received(field, value) for field, value in zip(fields, of_fields, strict=True)}
            return answer({**raw, **dict(zip(also, rest, strict=True)), **dict(zip(others, kept, strict=True))})

        packed = trigger(
            fn=None,
            inputs=fields,
            outputs=self._parcel,
            js=f"(...values) => [[...values{''.join(f', ({js})()' for js in also.values())}]]",
            queue=False,
            show_progress="hidden",
        )
        return packed.success(unpacked, [self._parcel, *others], list(outputs), **options)

    def outputs(self) -> list[Component]:
        """All widgets, for a handler that answers with a dict."""
        return list(self.widgets.values())

    def events(self) -> list[Any]:
        """The events of a user changing any field."""
        # Of a text also what is pasted, cut or rubbed out: `app.texts` sees to it.
        return [getattr(widget, "input", None) or widget.change for widget in self.widgets.values()]  # type: ignore[attr-defined]

    def read(self, raw: Mapping[Component, Any]) -> dict[str, Any]:
        """The settings, nested and not yet validated, out of what a handler was given."""
        values = {path: from_widget(self.specs[path], raw[widget]) for path, widget in self.widgets.items()}
        return nest({**self.fixed, **values})

    def fill(self, values: Mapping[str, Any]) -> dict[Component, Any]:
        """Updates that show settings (by dotted path) in the form; fields that are not named stay."""
        return {
            widget: gr.update(value=to_widget(self.specs[path], values[path]))
            for path, widget in self.widgets.items()
            if path in values
        }

    def mark(self, findings: Sequence[Finding], marked: Sequence[str]) -> tuple[dict[Component, Any], list[str]]:
        """Updates that put each finding at its field and clear those in `marked` that are mended, and the new `marked`.

        A finding about a group is shown at the group's first field.
        """
        messages: dict[str, str] = {}
        for finding in findings:
            path = self.path_of(finding)
            if path:
                messages[path] = f"{messages[path]}; {finding.message}" if path in messages else finding.message
        updates: dict[Component, Any] = {}
        for path in {*messages, *marked} & self.widgets.keys():
            spec = self.specs[path]
            place, usual = ("label", label(spec)) if spec.columns else ("info", info(spec))
            text = f"⚠ {messages[path]}" if path in messages else usual
            classes = ["has-error"] if path in messages else []
            updates[self.widgets[path]] = gr.update(**{place: text, "elem_classes": classes})
        return updates, sorted(messages)

    def path_of(self, finding: Finding) -> str:
        """The field that a finding is shown at, or "" where it is about none of them."""
        where = finding.where
        while where:
            if where in self.widgets:
                return where
            below = next((path for path in self.widgets if path.startswith(f"{where}.")), "")
            if below:
                return below
            where = where.rpartition(".")[0]
        return ""

    def summary(self, findings: Sequence[Finding]) -> str:
        """The findings in one text: which fields need attention."""
        lines = []
        for finding in findings:
            path = self.path_of(finding)
            spec = self.specs.get(path)
            place = label(spec) if spec else finding.where
            if spec and path in self._in_group:
                place = f"{GROUP_TITLES.get(spec.group, spec.group)} › {place}"
            lines.append(f"{place}: {finding.message}" if place else finding.message)
        return "\n".join(lines)


def _received(widget: Component, value: Any) -> Any:
    """What a widget's handler would be given for what the browser holds: a table comes in gradio's own form."""
    if isinstance(widget, gr.Dataframe) and isinstance(value, dict):
        return widget.preprocess(DataframeData.model_validate(value))
    return value


def _plain(text: str) -> str:
    return html.escape(" ".join(text.split()))
