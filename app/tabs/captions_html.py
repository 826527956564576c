"""The HTML of the section "Captions": rows, tags, what an edit would do. Every text that is not ours is escaped."""

from __future__ import annotations

from collections.abc import Sequence

from app import render
from app.services.captions import SHOWN_CHANGES, CaptionPage, CaptionRow, CaptionService
from trainer.dataset.caption_files import Difference, ExportReport
from trainer.dataset.captioned import EditPlan
from trainer.dataset.token_counts import TOKEN_LIMITS, limit_of

_SHOWN_DIFFERENCES = 30


def token_facts(tokens: Sequence[int]) -> dict[str, str]:
    """How many tokens captions have, as `text`, and `mark`: how far that is over what is read at once."""
    if not tokens:
        return {"text": "no caption", "mark": "none"}
    longest = max(tokens)
    limit = limit_of(longest)
    text = f"{longest} / {limit or TOKEN_LIMITS[-1]} tokens"
    if len(tokens) > 1:
        text = f"{len(tokens)} captions · longest {text}"
    if limit is None:
        return {"text": f"{text}: the end is cut", "mark": "wrong"}
    return {"text": text, "mark": "" if limit == TOKEN_LIMITS[0] else "long"}


def rows(name: str, page: CaptionPage, base: str, stamp: float, service: CaptionService) -> str:
    """A page of pictures, each beside a field with its captions, one a line."""
    if not page.rows:
        text = "No picture fits the filter." if page.query.is_narrowed else "There are no pictures here yet."
        return render.empty(text)
    data = {"set": name, "base": base, "stamp": f"{stamp:.6f}", "page": page.query.page, "pages": page.num_pages}
    attributes = " ".join(f'data-{key}="{render.text(value)}"' for key, value in data.items())
    inner = "".join(_row(row, service) for row in page.rows)
    return f'<div class="caption-rows" {attributes}>{inner}</div>'


def _row(row: CaptionRow, service: CaptionService) -> str:
    name, text = render.text(row.picture.name), render.text(row.picture.text)
    thumbnail = service.thumbnail(row.picture)
    image = f'<img src="{render.file_url(thumbnail)}" alt="" loading="lazy">' if thumbnail else "<span>✕</span>"
    tokens = token_facts(row.tokens)
    lines = min(8, max(2, sum(1 + len(caption) // 80 for caption in row.picture.captions)))
    return (
        f'<div class="caption-row"><div class="caption-picture">{image}</div><div class="caption-side">'
        f'<div class="caption-head"><span class="picture-name">{name}</span>'
        f'<span class="caption-tokens {tokens["mark"]}">{tokens["text"]}</span>'
        '<span class="caption-state" role="status"></span></div>'
        # The browser drops a line break that a textarea begins with; no caption has one.
        f'<textarea rows="{lines}" data-picture="{name}" data-saved="{text}" aria-label="Captions of {name}">{text}</textarea>'
        "</div></div>"
    )


def tags(page: CaptionPage) -> str:
    """The tags as buttons with their counts, those that are chosen first."""
    having = {tag.casefold() for tag in page.query.having}
    lacking = {tag.casefold() for tag in page.query.lacking}
    shown = []
    known = {item.tag.casefold() for item in page.tags}
    gone = [(tag, 0) for tag in (*page.query.having, *page.query.lacking) if tag.casefold() not in known]
    for tag, number in [*gone, *((item.tag, item.pictures) for item in page.tags)]:
        key = tag.casefold()
        mark, sign = ("with", "✓ ") if key in having else ("without", "✕ ") if key in lacking else ("", "")
        says = {"with": "with it", "without": "without it"}.get(mark, "not filtered by it")
        shown.append(
            f'<button type="button" class="tag-chip {mark}" data-tag="{render.text(tag)}" aria-label="{render.text(tag)}, '
            f'{number} pictures, {says}">{sign}{render.text(tag)} <span>{number:,}</span></button>'
        )
    more = page.num_tags - len(page.tags)
    rest = f'<span class="hint">… and {more:,} more; look for them above.</span>' if more > 0 else ""
    empty = "" if shown else render.empty("No tags yet.")
    return f'<div class="tag-chips">{"".join(shown)}{rest}{empty}</div>'


def found(page: CaptionPage) -> str:
    """How many pictures the filter finds."""
    query = page.query
    parts = [
        f"{page.num_found:,} of {page.num_pictures:,} pictures"
        if query.is_narrowed
        else f"{page.num_pictures:,} pictures"
    ]
    parts += [f"with {', '.join(query.having)}"] if query.having else []
    parts += [f"without {', '.join(query.lacking)}"] if query.lacking else []
    return f'<div class="plan-line" role="status">{render.text(" · ".join(parts))}</div>'


def plan(planned: EditPlan) -> str:
    """What an edit would change, the first of it in full."""
    head = f"{planned.title}: {len(planned.changes):,} of {planned.num_pictures:,} captions would change."
    items = "".join(
        f"<li><b>{render.text(change.name)}</b>{_line('before', change.before)}{_line('after', change.after)}</li>"
        for change in planned.changes[:SHOWN_CHANGES]
    )
    more = len(planned.changes) - SHOWN_CHANGES
    items += f"<li>… and {more:,} more</li>" if more > 0 else ""
    return f'<div class="plan-line" role="status">{render.text(head)}</div><ul class="caption-changes">{items}</ul>'


def differences(found: Sequence[Difference]) -> str:
    """Where files say something else than the data set."""
    if not found:
        return '<div class="plan-line" role="status">The files beside the pictures say nothing else than the data set.</div>'
    items = "".join(
        f"<li><b>{render.text(item.path.name)}</b>{_line('before', item.in_file, 'in the file')}"
        f"{_line('after', item.in_set, 'in the data set')}</li>"
        for item in found[:_SHOWN_DIFFERENCES]
    )
    more = len(found) - _SHOWN_DIFFERENCES
    items += f"<li>… and {more:,} more</li>" if more > 0 else ""
    head = f"{len(found):,} files beside the pictures say something else."
    return f'<div class="plan-line" role="status">{head}</div><ul class="caption-changes">{items}</ul>'


def left_out(report: ExportReport) -> str:
    """The pictures that got no caption file, and why."""
    items = "".join(
        f"<li><b>{render.text(finding.where)}</b> {render.text(finding.message)}</li>" for finding in report.left_out
    )
    return f'<ul class="caption-changes">{items}</ul>' if items else ""


def _line(kind: str, captions: Sequence[str], label: str = "") -> str:
    words = " ⏎ ".join(captions) or "no caption"
    prefix = f'<span class="hint">{label}: </span>' if label else ""
    return f'<div class="{kind}">{prefix}{render.text(words)}</div>'
