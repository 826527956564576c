"""The page: its tabs in order, and what holds for all of them."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import gradio as gr

from app.links import Links, make_links, wind_clocks
from app.services.context import Services
from app.steady_dict import SessionEvents, SteadyDict
from app.theme import TOGGLE_JS

log = logging.getLogger(__name__)

TABS = ("dataset", "train", "generate", "gallery", "loras", "tools", "models", "jobs")
"""The tabs in their order: files of `app/tabs/`, each with TITLE and build(services, links)."""

_LOGO = (
    '<svg viewBox="0 0 32 32" fill="none" aria-hidden="true"><path d="M16 3c5 7 9 11 9 16a9 9 0 0 1-18 0c0-5 4-9 9-16Z" '
    'fill="currentColor"/><path d="M11 20a5 5 0 0 0 5 5" stroke="#fff" stroke-width="1.8" stroke-linecap="round" '
    'opacity=".75"/></svg>'
)
_HEADER = (
    f'<div class="brand">{_LOGO}<div><div class="name">Inkwash</div>'
    '<div class="tagline">Teach a picture model your style, on your own computer.</div></div></div>'
)

_BROKEN = '<div class="run-error broken-tab">This tab could not be opened. The log in the data folder says why.</div>'


def build_page(services: Services) -> gr.Blocks:
    """The whole page."""
    with gr.Blocks(title="Inkwash", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True) as page:
        with gr.Row(elem_id="inkwash-header"):
            gr.HTML(_HEADER, padding=False)
            theme = gr.Button("◐ Theme", elem_id="theme-toggle", size="sm", variant="secondary")
        theme.click(None, None, None, js=TOGGLE_JS)
        tabs = gr.Tabs(elem_id="tabs", render=False)
        links = make_links(page, tabs)
        tabs.render()
        with tabs:
            for name in TABS:
                _add_tab(name, services, links)
            links.current = None
            wind_clocks(links)
    _settle_events(page)
    return page


def _settle_events(page: gr.Blocks) -> None:
    """What holds for every event of the page, whichever tab it is of."""
    watched = {
        block_id
        for function in page.fns.values()
        for block_id, event in function.targets
        if event == "change" and block_id is not None and isinstance(page.blocks.get(block_id), gr.State)
    }
    for function in page.fns.values():
        # What the page's own buttons do is no API for other programs.
        function.api_visibility = "private"
        # The browser hears of errors and notes (toasts), and that a State changed, from queued events only (gradio 6.31:
        # `log_message`, `changed_state_ids`). Polls and checks while one types, which say nothing, need not wait in line.
        if not _is_silent(function) or any(output._id in watched for output in function.outputs):
            function.queue = True
        if function.show_progress == "hidden":
            # The browser (gradio 6.31, `update_loading_stati_state`) tells every component that any event ever answered to
            # of each step of every event, each after a search of the whole page: nothing to say needs no telling.
            function.show_progress_on = []
    # Every session has copies of these, with what its rows of a stack added.
    page.default_config.fns = SessionEvents(page.default_config.fns)
    page.default_config.blocks = SteadyDict(page.default_config.blocks)


def _is_silent(function: Any) -> bool:
    """Whether a function runs by the clock, as the page is loaded, or at every key, and not because something was asked for."""
    events = {event for _, event in function.targets}
    return function.trigger_mode == "always_last" or bool(events & {"tick", "load"})


def _add_tab(name: str, services: Services, links: Links) -> None:
    """One tab. One that cannot be built says so in its place, and the others work; a test demands that none does."""
    try:
        module = importlib.import_module(f"app.tabs.{name}")
    except ImportError:
        log.exception("The tab %s cannot be loaded", name)
        with gr.Tab(name.capitalize(), id=name, elem_id=f"tab-{name}"):
            gr.HTML(_BROKEN, padding=False)
        return
    # Generate is drawn before it is opened: what `gr.render` sends to a tab that is not there yet is lost.
    is_drawn_early = name == "generate"
    with gr.Tab(module.TITLE, id=name, elem_id=f"tab-{name}", render_children=is_drawn_early) as links.current:
        try:
            module.build(services, links)
        except Exception:
            log.exception("The tab %s cannot be built", name)
            gr.HTML(_BROKEN, padding=False)
