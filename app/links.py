"""What lets one tab reach another: the page, the row of tabs, and a mailbox for each thing that can be sent.

A tab sends with `send`: `button.click(lambda name: send(name, "train"), name, [links.dataset_for_train, links.tabs])`.
The receiving tab listens: `links.dataset_for_train.change(receive, links.dataset_for_train, outputs)`, where the value
is a `Letter`. The sending event must go through the queue (no `queue=False`): outside of it gradio does not tell the
page that a gr.State has changed. `links.on_show(fn, ...)`, called in `build`, runs when the page is loaded and when that tab is opened.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gradio as gr

from app.messages import handler

_UNSEEN_SECONDS = 15.0
# The handlers of a tab run one after the other, so this one may come when another tab has been opened since.
_WIND = """async () => {
    const table = %s;
    await new Promise(done => setTimeout(done, 30));
    const isOpen = id => document.getElementById(id + "-button")?.getAttribute("aria-selected") === "true";
    const open = Object.keys(table).find(isOpen) ?? %s;
    sessionStorage.setItem("inkwash-tab", open);
    return table[open];
}"""
# A page that was reloaded, by the user or by gradio after a lost connection, opens where it was.
_REOPEN = """() => {
    document.getElementById(sessionStorage.getItem("inkwash-tab") + "-button")?.click();
}"""


class Letter(NamedTuple):
    """Something sent to a tab. `sent` makes the same content sent twice two letters."""

    content: Any
    sent: float


@dataclass
class Links:
    """The page's shared parts. Made once a page, inside its Blocks."""

    page: gr.Blocks
    dataset_for_train: gr.State
    """Name of a data set to train on."""
    run_for_train: gr.State
    """Id of a training run to look at."""
    lora_for_generate: gr.State
    """Path (str) of a LoRA file to put on the stack."""
    recipe_for_generate: gr.State
    """Settings of a picture, as GenerateConfig's plain data."""
    recipe_for_train: gr.State
    """Path (str) of a LoRA file whose training settings fill the Train form."""
    lora_for_library: gr.State
    """Name of a LoRA to look at in the LoRAs tab."""
    lora_for_tools: gr.State
    """Name of a LoRA for the tools to work on."""
    base_for_train: gr.State
    """Name of a base model to train on."""
    base_for_generate: gr.State
    """Name of a base model to make pictures with."""
    tabs: gr.Tabs
    """The row of tabs, as an output that opens one."""
    current: gr.Tab | None = None
    """The tab that is being built, set by `app.page`."""
    clocks: list[tuple[gr.Tab, gr.Timer, float]] = field(default_factory=list)
    """The tabs' timers, and the seconds that each is to tick while its tab is seen."""

    @property
    def tab(self) -> gr.Tab:
        """The tab that is being built. Raises ValueError outside of `build`."""
        if self.current is None:
            raise ValueError("no tab is being built")
        return self.current

    def clock(self, seconds: float) -> gr.Timer:
        """A timer that ticks every so often while the tab being built is seen, and seldom while it is not.

        Every tick makes the browser look through the whole page: five tabs that ticked at once kept it from doing
        anything else.
        """
        timer = gr.Timer(_UNSEEN_SECONDS)
        self.clocks.append((self.tab, timer, seconds))
        return timer

    def on_show(
        self, function: Callable[..., Any], inputs: Sequence[Any] | None = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Run `function` when the page is loaded and whenever the tab being built is opened."""
        gr.on(
            [self.page.load, self.tab.select],
            handler(function),
            inputs,
            outputs,
            queue=False,
            show_progress="hidden",
        )


def send(content: Any, tab: str) -> tuple[Letter, dict[str, Any]]:
    """The two outputs that deliver `content` to a mailbox and open the tab with that id (its file's name)."""
    return Letter(content, time.time()), gr.update(selected=tab)


def wind_clocks(links: Links) -> None:
    """Let the clocks of the tab that is opened tick, and all others seldom; a reload opens that tab again. Once, when all tabs are built."""
    timers = [timer for _, timer, _ in links.clocks]
    tabs = [tab for tab in links.tabs.children if isinstance(tab, gr.Tab)]
    table = {
        str(opened.elem_id): [seconds if tab is opened else _UNSEEN_SECONDS for tab, _, seconds in links.clocks]
        for opened in tabs
    }
    for opened in tabs:
        # In the browser alone: an answer of the server would cost as much as the ticks that are saved.
        opened.select(
            None, None, timers, js=_WIND % (json.dumps(table), json.dumps(opened.elem_id)), show_progress="hidden"
        )
    links.page.load(None, None, None, js=_REOPEN, show_progress="hidden")


def make_links(page: gr.Blocks, tabs: gr.Tabs) -> Links:
    """The links of a page, with empty mailboxes. Not inside the Tabs: whatever lies in there counts as a tab."""
    mailboxes = [gr.State() for _ in range(9)]
    return Links(page, *mailboxes, tabs=tabs)
