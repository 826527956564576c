"""A picture of what is inside a LoRA: a row for each block, with its norm and its spectrum."""

from __future__ import annotations

import html

from trainer.lora_tools.anatomy import AnatomyReport

_ROW, _LABEL, _BAR, _CURVE, _GAP = 24, 240, 240, 180, 14
_WIDTH = _LABEL + _BAR + _CURVE + 2 * _GAP
# Text takes the colour of what is around it, and these two are seen on paper and in the dark.
_FILL, _FAINT = "#5b8fb0", "#80808040"


def anatomy_svg(report: AnatomyReport) -> str:
    """The picture as SVG, which has the colours of the page that it stands in; as a file it is black on transparent."""
    height = (len(report.blocks) + 1) * _ROW + 8
    largest = max((block.norm for block in report.blocks), default=0.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" font-family="sans-serif" '
        f'font-size="12" aria-label="Norm and singular values of each block">',
        *(
            _text(left, 16, title)
            for left, title in (
                (0, "Block"),
                (_LABEL + _GAP, "Norm of the change"),
                (_LABEL + _BAR + 2 * _GAP, "Singular values"),
            )
        ),
    ]
    for index, block in enumerate(report.blocks, 1):
        top = index * _ROW
        share = block.norm / largest if largest else 0.0
        parts.append(_text(0, top + 16, block.block))
        parts.append(_rectangle(_LABEL + _GAP, top + 5, _BAR, _ROW - 9, _FAINT))
        title = f"<title>{html.escape(block.block)}: norm {block.norm:.4g}</title>"
        parts.append(_rectangle(_LABEL + _GAP, top + 5, _BAR * share, _ROW - 9, _FILL, title))
        left, step = _LABEL + _BAR + 2 * _GAP, _CURVE / max(1, len(block.spectrum))
        bars = [
            f"M{left + place * step:.1f} {top + _ROW - 3}v-{max(1.0, (_ROW - 6) * value):.1f}h{max(0.8, step - 1):.1f}V{top + _ROW - 3}z"
            for place, value in enumerate(block.spectrum)
        ]
        # One path a block: a rectangle each would make a large model's picture megabytes.
        parts.append(f'<path d="{"".join(bars)}" fill="{_FILL}"/>')
    return "".join([*parts, "</svg>"])


def _text(left: float, bottom: float, text: str) -> str:
    return f'<text x="{left}" y="{bottom}" fill="currentColor">{html.escape(text)}</text>'


def _rectangle(left: float, top: float, width: float, height: float, fill: str, inner: str = "") -> str:
    return f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}">{inner}</rect>'
