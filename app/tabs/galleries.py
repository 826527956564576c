"""The two kinds of galleries that the tabs have: tiles that choose something, and pictures that a job has made."""

from __future__ import annotations

import gradio as gr


def tile_gallery(elem_id: str, label: str, columns: int) -> gr.Gallery:
    """Small pictures; a click on one chooses it, and another part of the tab shows it."""
    return gr.Gallery(
        label=label,
        show_label=False,
        columns=columns,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id=elem_id,
        elem_classes="picture-grid",
    )


def made_gallery(elem_id: str, label: str) -> gr.Gallery:
    """Whole pictures, to be enlarged and downloaded."""
    return gr.Gallery(
        label=label,
        elem_id=elem_id,
        columns=4,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        format="png",
    )
