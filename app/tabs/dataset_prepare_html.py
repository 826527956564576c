"""What the Prepare section says in HTML and lists. Every text that is not ours is escaped."""

from __future__ import annotations

from collections import Counter

from app import render
from app.services.dataset_prepare import Overview, matching

SHOWN = 300
"""Pictures that the list shows at most."""


def proposed(found: list[str], total: int) -> str:
    """What was seen, a text a proposal, in how many pictures, of `total` that were looked at."""
    if not found:
        return "Nothing is proposed: no subject is seen, there is a crop, or what is trained already holds the subject."
    seen = Counter(found)
    return (
        f"Proposed for {len(found):,} of {total:,}: {', '.join(f'{what} ({number})' for what, number in seen.items())}."
    )


def status(words: str) -> str:
    """A line that is read out when it changes."""
    return f'<div class="plan-line" role="status">{render.text(words)}</div>'


def rows(overview: Overview, find: str) -> list[list[str]]:
    """The list of pictures: name, size, and share lost."""
    cuts = matching(overview.cuts, find)[:SHOWN]
    return [
        [
            cut.facts.name,
            f"{cut.bucket.width}×{cut.bucket.height}{' · crop' if cut.facts.crop else ''}",
            f"{cut.lost:.1%}",
        ]
        for cut in cuts
    ]


def summary_html(overview: Overview) -> str:
    """What is lost in all, and the table of sizes."""
    lines = "".join(
        f"<tr><td>{row.bucket.width}×{row.bucket.height}</td><td>{row.num_pictures:,}</td><td>{row.mean_lost:.1%}</td>"
        f"<td>{row.most_lost:.1%}</td><td>{row.num_enlarged or ''}</td></tr>"
        for row in overview.buckets
    )
    table = (
        "<table><thead><tr><th>Size (px)</th><th>Pictures</th><th>Lost (mean)</th><th>Lost (most)</th><th>Enlarged</th></tr>"
        f"</thead><tbody>{lines}</tbody></table>"
    )
    variants = overview.config.crop_variants
    also = (
        f"<div>{variants} cuts at other places take turns with each picture that is longer than its size (data.crop_variants); "
        "shown is the centre, which validation takes.</div>"
        if variants
        else ""
    )
    line = f'<div class="plan-line" role="status">{render.text(overview.summary)}</div>'
    more = len(overview.cuts) > SHOWN
    hint = f'<div class="hint">The list shows the {SHOWN} that lose most; find others by name.</div>' if more else ""
    return f"{line}{also}<details><summary>Sizes</summary>{table}</details>{hint}"
