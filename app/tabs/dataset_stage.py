"""The picture of the Prepare section on which one draws: what is trained lies bright on it, and a crop is drawn with the pointer.

A `gr.HTML` with a script of its own: gradio's ImageEditor would send the whole picture back and forth for each stroke.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import render
from app.services.dataset_prepare import PreparedPicture

_SCRIPT = """
let start = null, drawn = null;
const stage = () => element.querySelector('.prepare-stage');
const at = (event) => {
  const box = stage().getBoundingClientRect();
  const share = (value, from, length) => Math.min(1, Math.max(0, (value - from) / length));
  return [share(event.clientX, box.left, box.width) * stage().dataset.width,
          share(event.clientY, box.top, box.height) * stage().dataset.height];
};
const boxOf = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])]
  .map(Math.round);
element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.prepare-stage') || event.button !== 0) return;
  event.preventDefault();
  start = at(event);
  drawn = null;
});
window.addEventListener('pointermove', (event) => {
  if (!start || !stage()) return;
  drawn = boxOf(start, at(event));
  const shape = stage().querySelector('.drawn');
  ['x', 'y'].forEach((name, index) => shape.setAttribute(name, drawn[index]));
  shape.setAttribute('width', drawn[2] - drawn[0]);
  shape.setAttribute('height', drawn[3] - drawn[1]);
});
window.addEventListener('pointerup', () => {
  const done = start && drawn;
  start = null;
  if (done && stage()) trigger('drawn', {picture: stage().dataset.picture, box: drawn});
});
"""
_STYLE = """
.prepare-stage { position: relative; display: inline-block; max-width: 100%; line-height: 0; touch-action: none; cursor: crosshair; user-select: none; }
.prepare-stage img { max-width: 100%; max-height: 60vh; }
.prepare-stage svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.prepare-stage .lost { fill: #000; fill-opacity: .62; fill-rule: evenodd; }
.prepare-stage .trained { fill: none; stroke: #fff; stroke-width: 2; vector-effect: non-scaling-stroke; }
.prepare-stage .crop { fill: none; stroke: #ffb000; stroke-width: 2; stroke-dasharray: 6 4; vector-effect: non-scaling-stroke; }
.prepare-stage .proposed { fill: none; stroke: #3ddc84; stroke-width: 3; vector-effect: non-scaling-stroke; }
.prepare-stage .drawn { fill: #ffb000; fill-opacity: .18; stroke: #ffb000; stroke-width: 2; vector-effect: non-scaling-stroke; }
"""


def make_stage(**options: Any) -> gr.HTML:
    """The component. Its event `drawn` brings `picture` and `box`, in px of the upright picture."""
    return gr.HTML("", css_template=_STYLE, js_on_load=_SCRIPT, padding=False, **options)


def stage_html(shown: PreparedPicture, proposed: Sequence[int] = ()) -> str:
    """The whole picture, dimmed where it is not trained, with its crop as a dashed line and a proposed one as a green one."""
    width, height = shown.facts.whole_size
    left, top, right, bottom = (f"{value:.2f}" for value in shown.cut.box)
    inside = f"M{left} {top}H{right}V{bottom}H{left}Z"
    shapes = f'<path class="lost" d="M0 0H{width}V{height}H0Z{inside}"/><path class="trained" d="{inside}"/>'
    if shown.facts.crop is not None:
        shapes += _rectangle("crop", shown.facts.crop.box)
    if proposed:
        shapes += _rectangle("proposed", proposed)
    return (
        f'<div class="prepare-stage" data-picture="{render.text(shown.facts.name)}" data-width="{width}" data-height="{height}">'
        f'<img src="{render.file_url(shown.whole)}" alt="The whole picture" draggable="false">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{shapes}'
        '<rect class="drawn" x="0" y="0" width="0" height="0"/></svg></div>'
    )


def _rectangle(kind: str, box: Sequence[int]) -> str:
    left, top, right, bottom = box
    return f'<rect class="{kind}" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'


def trained_html(shown: PreparedPicture) -> str:
    """What is trained, to the pixel, with its size and what is lost."""
    cut = shown.cut
    if cut.scale > 1:
        scaled = f"enlarged {cut.scale:.2f} times, which adds blur"
    else:
        scaled = f"scaled to {cut.scale:.0%}"
    words = f"Trained at {cut.bucket.width}×{cut.bucket.height} px, {scaled}. {cut.lost:.1%} is cut off."
    return (
        f'<div class="picture-name">{render.text(cut.facts.name)}</div><div class="hint">{words}</div>'
        f'<img class="prepare-trained" src="{render.file_url(shown.trained)}" alt="As it is trained" '
        f'width="{cut.bucket.width}" height="{cut.bucket.height}" style="max-width:100%;height:auto">'
    )
