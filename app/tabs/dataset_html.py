"""What the Dataset tab says in HTML. Every text that is not ours is escaped."""

from __future__ import annotations

from app import render
from app.services.datasets import DatasetView, PictureView, ProblemRow, shown_rows
from trainer.dataset.catalog import DatasetInfo
from trainer.errors import DatasetError


def about(view: DatasetView) -> str:
    """Where a data set comes from, and what its maker says of it."""
    info = view.info
    origin = "Bundled" if info.is_bundled else "Folder on this machine" if info.is_linked else "Your own"
    badges = "".join(f'<span class="badge">{render.text(part)}</span> ' for part in (origin, info.kind) if part)
    lines = [info.description, f"License: {info.license}" if info.license else ""]
    lines.append(f"Pictures: {info.folder}" if info.is_linked else "")
    texts = "".join(f'<div class="hint">{render.text(line)}</div>' for line in lines if line)
    return f'<div class="dataset-about"><div>{badges}</div>{texts}</div>'


def deletion(info: DatasetInfo, number: int) -> str:
    """What is asked before a data set is deleted; `number` is how many pictures it has."""
    title = render.text(info.title)
    if info.is_linked:
        return f"<div>Forget ‘{title}’? The folder and its pictures stay where they are.</div>"
    return f"<div>Move ‘{title}’ with its {number} pictures to the trash folder?</div>"


def cannot_open(name: str, error: DatasetError) -> str:
    """That a data set cannot be opened, why, and what to do."""
    text = render.text(error).replace("\n", "<br>")
    title = f'<div class="section-title">‘{render.text(name)}’ cannot be opened</div>'
    return f'{title}<div class="run-error" role="alert">{text}</div>'


def problem_list(rows: list[ProblemRow]) -> str:
    """The problems, errors first; open where an error is among them."""
    shown, more = shown_rows(rows)
    items = []
    for row in shown:
        where = f"<b>{render.text(row.where)}</b> " if row.where else ""
        mark = "error" if row.problem.is_error else "warning"
        fix = f' <span class="hint">{render.text(row.problem.fix)}</span>' if row.problem.fix else ""
        items.append(f'<li class="{mark}">{where}{render.text(row.problem.message)}{fix}</li>')
    if more:
        items.append(f"<li>… and {more:,} more</li>")
    num_errors = sum(1 for row in rows if row.problem.is_error)
    unused = f", {num_errors} of which keep a picture from being used" if num_errors else ""
    title = f"{len(rows):,} {'problem' if len(rows) == 1 else 'problems'}{unused}"
    opened = " open" if num_errors else ""
    return f'<details class="problem-list"{opened}><summary>{title}</summary><ul>{"".join(items)}</ul></details>'


def picture_facts(shown: PictureView) -> str:
    """Name, size, place and problems of a picture."""
    facts = shown.facts
    size = f"{facts.width}×{facts.height} px · " if facts.width else ""
    head = f'<div class="picture-name">{render.text(facts.name)}</div>'
    line = f'<div class="hint">{size}{shown.index + 1} of {shown.total}</div>'
    if facts.caption_source:
        line += f'<div class="hint">Its caption is from {render.text(facts.caption_source)}.</div>'
    notes = "".join(
        f'<div class="{"problems" if p.is_error else "run-warning"}">{render.text(p.message)} {render.text(p.fix)}</div>'
        for p in facts.problems
    )
    return head + line + notes
