"""The picture of the Prepare section on which one draws: what is trained lies bright on it, it is turned, a crop is drawn and a mask is painted.

A `gr.HTML` with a script of its own: gradio's ImageEditor would send the whole picture back and forth for each stroke.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app import render
from app.services.dataset_prepare import MASK_COLOUR, PreparedPicture
from trainer.config.data import MaskSource
from trainer.dataset.proposals import VIEW_SIDE
from trainer.errors import InkwashError

_SCRIPT = """
let mode = 'crop', size = 6, from = null, drawn = null, whom = 'one';
// What was painted and not saved, by picture: it outlives a look at another one, a crop and a turn.
const unsaved = new Map();
const find = (name) => element.querySelector(name);
const stage = () => find('.prepare-stage');
const at = (event) => {
  const box = stage().getBoundingClientRect();
  const share = (value, start, length) => Math.min(1, Math.max(0, (value - start) / length));
  return [share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)];
};
const inPixels = (point) => [point[0] * stage().dataset.width, point[1] * stage().dataset.height];
const boxOf = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])]
  .map(Math.round);
const brush = () => Math.max(2, size / 100 * Math.max(find('canvas').width, find('canvas').height));
const stroke = (a, b) => {
  const canvas = find('canvas'), pen = canvas.getContext('2d');
  pen.globalCompositeOperation = mode === 'erase' ? 'destination-out' : 'source-over';
  pen.strokeStyle = canvas.dataset.colour;
  pen.lineWidth = brush();
  pen.lineCap = pen.lineJoin = 'round';
  pen.beginPath();
  pen.moveTo(a[0] * canvas.width, a[1] * canvas.height);
  pen.lineTo(b[0] * canvas.width + .01, b[1] * canvas.height);
  pen.stroke();
};
// Another data set may have a picture of the same name.
const keyOf = () => JSON.stringify([stage().dataset.set, stage().dataset.picture]);
const keep = () => {
  const canvas = find('canvas'), copy = document.createElement('canvas');
  copy.width = canvas.width;
  copy.height = canvas.height;
  copy.getContext('2d').drawImage(canvas, 0, 0);
  unsaved.set(keyOf(), {copy, turn: Number(stage().dataset.turn)});
  tellUnsaved();
};
const tellUnsaved = (why) => {
  const told = find('.unsaved');
  told.textContent = why || 'not saved yet';
  told.hidden = !why && !unsaved.has(keyOf());
};
const about = (facts) => ({set: stage().dataset.set, picture: stage().dataset.picture, ...facts});
// What is painted is forgotten when the server has said that it is kept, and not before.
const send = async (mask) => {
  const own = keyOf(), sent = unsaved.get(own);
  let answer;
  try { answer = await server.paint(about({mask})); } catch (error) { answer = null; }
  const refused = answer ? answer.error : 'It could not be saved: is Inkwash still running? It is kept here.';
  if (!refused && unsaved.get(own) === sent) unsaved.delete(own);  // else one painted on meanwhile
  if (stage() && keyOf() === own) {
    if (!refused && !mask && !answer.changed) {
      find('canvas').getContext('2d').clearRect(0, 0, find('canvas').width, find('canvas').height);
      load();
    }
    tellUnsaved(refused);
  }
  if (!refused) trigger('painted', answer);
};
const putBack = (canvas, {copy, turn}) => {
  const pen = canvas.getContext('2d'), by = Number(stage().dataset.turn) - turn;
  pen.save();
  pen.translate(canvas.width / 2, canvas.height / 2);
  pen.rotate(by * Math.PI / 180);
  pen.drawImage(copy, -copy.width / 2, -copy.height / 2);
  pen.restore();
};
const load = () => {
  const canvas = find('canvas');
  if (!canvas) return;
  element.querySelectorAll('[data-mode]').forEach((each) => each.setAttribute('aria-pressed', each.dataset.mode === mode));
  find('[name=brush]').value = size;
  find('[name=whom]').value = whom;
  tellUnsaved();
  const kept = unsaved.get(keyOf());
  if (kept) putBack(canvas, kept);
  if (kept || !canvas.dataset.mask) return;
  const image = new Image();
  image.onload = () => { if (canvas.isConnected && !unsaved.has(keyOf())) canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height); };
  image.src = canvas.dataset.mask;
};
watch('value', load);
load();
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.mode) {
    mode = button.dataset.mode;
    element.querySelectorAll('[data-mode]').forEach((each) => each.setAttribute('aria-pressed', each === button));
  } else if (button.dataset.act === 'save') {
    send(find('canvas').toDataURL('image/png'));
  } else if (button.dataset.turn) {
    trigger('turned', about({degrees: Number(button.dataset.turn), all: whom === 'all'}));
  } else if (button.dataset.act === 'remove') {
    send('');
  }
});
element.addEventListener('input', (event) => {
  if (event.target.name === 'brush') size = Number(event.target.value);
  if (event.target.name === 'whom') whom = event.target.value;
});
element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.prepare-stage') || event.button !== 0) return;
  event.preventDefault();
  from = at(event);
  drawn = null;
  if (mode !== 'crop') stroke(from, from);
});
window.addEventListener('pointermove', (event) => {
  if (!from || !stage()) return;
  const to = at(event);
  if (mode !== 'crop') {
    stroke(from, to);
    from = to;
    return;
  }
  drawn = boxOf(inPixels(from), inPixels(to));
  const shape = find('.drawn');
  ['x', 'y'].forEach((name, index) => shape.setAttribute(name, drawn[index]));
  shape.setAttribute('width', drawn[2] - drawn[0]);
  shape.setAttribute('height', drawn[3] - drawn[1]);
});
window.addEventListener('pointerup', () => {
  const done = from && mode === 'crop' && drawn;
  if (from && mode !== 'crop' && stage()) keep();
  from = null;
  if (done && stage()) trigger('drawn', about({box: drawn}));
});
"""
_STYLE = """
.prepare-stage { position: relative; display: inline-block; max-width: 100%; line-height: 0; touch-action: none; cursor: crosshair; user-select: none; }
.prepare-stage img { max-width: 100%; max-height: 60vh; }
.prepare-stage canvas { position: absolute; inset: 0; width: 100%; height: 100%; opacity: .5; }
.prepare-tools { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin-bottom: 6px; line-height: 1.4; }
.prepare-tools button { padding: 2px 10px; border: 1px solid var(--border-color-primary); border-radius: 6px; background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); }
.prepare-tools, .prepare-tools button, .prepare-tools select { font-size: .82rem; font-weight: 500; }
.prepare-tools select { padding: 2px 4px; border: 1px solid var(--border-color-primary); border-radius: 6px; background: var(--input-background-fill); color: var(--body-text-color); appearance: auto; width: auto; }
.prepare-tools label { display: inline-flex; gap: 4px; align-items: center; } .prepare-tools input { width: 90px; }
.prepare-tools .unsaved { color: #8a6100; } .dark .prepare-tools .unsaved { color: #e0b04a; }
.prepare-tools button[aria-pressed=true] { border-color: #ffb000; box-shadow: inset 0 0 0 1px #ffb000; }
.prepare-stage svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.prepare-stage .lost { fill: #000; fill-opacity: .62; fill-rule: evenodd; }
.prepare-stage .trained { fill: none; stroke: #fff; stroke-width: 2; vector-effect: non-scaling-stroke; }
.prepare-stage .crop { fill: none; stroke: #ffb000; stroke-width: 2; stroke-dasharray: 6 4; vector-effect: non-scaling-stroke; }
.prepare-stage .proposed { fill: none; stroke: #3ddc84; stroke-width: 3; vector-effect: non-scaling-stroke; }
.prepare-stage .drawn { fill: #ffb000; fill-opacity: .18; stroke: #ffb000; stroke-width: 2; vector-effect: non-scaling-stroke; }
"""
_LEAST_VIEW = 256
"""px: what is trained is shown about as wide."""
_TOOLS = (
    '<div class="prepare-tools" role="toolbar" aria-label="What the pointer draws">'
    '<button type="button" data-mode="crop">Crop</button>'
    '<button type="button" data-mode="paint">Paint the subject</button>'
    '<button type="button" data-mode="erase">Erase</button>'
    '<label>Brush <input type="range" name="brush" min="1" max="25" value="6"></label>'
    '<button type="button" data-act="save">Save the mask</button>'
    '<button type="button" data-act="remove">Remove the painted mask</button>'
    '<span class="unsaved" role="status" hidden>not saved yet</span></div>'
    '<div class="prepare-tools" role="toolbar" aria-label="Turn">'
    '<button type="button" data-turn="270" aria-label="Turn to the left">↺ Left</button>'
    '<button type="button" data-turn="90" aria-label="Turn to the right">↻ Right</button>'
    '<button type="button" data-turn="180" aria-label="Turn upside down">180°</button>'
    '<select name="whom" aria-label="Which pictures are turned"><option value="one">this picture</option>'
    '<option value="all">all that “Find by name” finds</option></select></div>'
)


def make_stage(paint: Callable[[str, str, str], bool], **options: Any) -> gr.HTML:
    """The component.

    Its events: `drawn` with `set`, `picture` and `box`, in px of the upright picture; `turned` with `set`, `picture`, `degrees` clockwise,
    and `all`: whether all are meant that are found by name; `painted`, after a mask was kept or taken away, with `changed` and `removed`.

    Args:
        paint: keeps what was painted: name of the data set, of the picture, and a PNG as a data URL, or nothing to take it away;
            returns whether anything changed. What it refuses stays in the browser, which says why.
    """

    def paint_or_say(data: Any) -> dict[str, Any]:
        """Called by the browser; what is wrong comes back as `error`."""
        name, picture, mask = (str(data.get(key, "")) for key in ("set", "picture", "mask"))
        try:
            return {"changed": paint(name, picture, mask), "removed": not mask}
        except InkwashError as error:
            return {"error": str(error)}

    # By the name that the script knows it by.
    paint_or_say.__name__ = "paint"
    return gr.HTML(
        "", css_template=_STYLE, js_on_load=_SCRIPT, server_functions=[paint_or_say], padding=False, **options
    )


def stage_html(name: str, shown: PreparedPicture, proposed: Sequence[int] = ()) -> str:
    """A picture of the data set `name`, whole, dimmed where it is not trained, its crop as a dashed line and a proposed one as a green one."""
    width, height = shown.facts.whole_size
    left, top, right, bottom = (f"{value:.2f}" for value in shown.cut.box)
    inside = f"M{left} {top}H{right}V{bottom}H{left}Z"
    shapes = f'<path class="lost" d="M0 0H{width}V{height}H0Z{inside}"/><path class="trained" d="{inside}"/>'
    if shown.facts.crop is not None:
        shapes += _rectangle("crop", shown.facts.crop.box)
    if proposed:
        shapes += _rectangle("proposed", proposed)
    scale = min(1.0, VIEW_SIDE / max(width, height))
    painting = (
        f'<canvas width="{max(1, round(width * scale))}" height="{max(1, round(height * scale))}" data-colour="{MASK_COLOUR}" '
        f'data-mask="{render.file_url(shown.mask) if shown.mask else ""}"></canvas>'
    )
    return _TOOLS + (
        f'<div class="prepare-stage" data-set="{render.text(name)}" data-picture="{render.text(shown.facts.name)}" data-width="{width}" data-height="{height}" data-turn="{shown.facts.turn}">'
        f'<img src="{render.file_url(shown.whole)}" alt="The whole picture" draggable="false">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">{shapes}'
        f'<rect class="drawn" x="0" y="0" width="0" height="0"/></svg>{painting}</div>'
    )


def _rectangle(kind: str, box: Sequence[int]) -> str:
    left, top, right, bottom = box
    return f'<rect class="{kind}" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"/>'


def trained_html(shown: PreparedPicture, masks: MaskSource) -> str:
    """What is trained, to the pixel, with its size and what is lost."""
    cut = shown.cut
    if cut.scale > 1:
        scaled = f"enlarged {cut.scale:.2f} times, which adds blur"
    else:
        scaled = f"scaled to {cut.scale:.0%}"
    words = f"Trained at {cut.bucket.width}×{cut.bucket.height} px, {scaled}. {cut.lost:.1%} is cut off."
    if shown.mask is not None:
        words += f" Its mask says that {shown.subject:.0%} of the whole picture is subject"
        words += (
            "." if masks in ("files", "any") else "; it counts when data.masks is files or any, which it is not here."
        )
    # Small ones larger, in whole steps, so that each pixel can be seen.
    zoom = max(1, _LEAST_VIEW // cut.bucket.width)
    return (
        f'<div class="picture-name">{render.text(cut.facts.name)}</div><div class="hint">{words}</div>'
        f'<img class="prepare-trained" src="{render.file_url(shown.trained)}" alt="As it is trained" '
        f'width="{zoom * cut.bucket.width}" height="{zoom * cut.bucket.height}" '
        f'style="max-width:100%;height:auto{";image-rendering:pixelated" if zoom > 1 else ""}">'
    )
