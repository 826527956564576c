"""Pieces of HTML and SVG that tabs show. Every text that is not ours is escaped here; nothing else writes HTML of data."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.services.jobs import History, JobRow
from trainer.errors import InkwashError
from trainer.runs import Run, RunState
from trainer.units import duration, size

_CHART_WIDTH, _CHART_HEIGHT = 640, 220
_MARGIN_LEFT, _MARGIN_BOTTOM, _MARGIN_TOP, _MARGIN_RIGHT = 52, 24, 10, 12
_MAX_POINTS = 320
_MAX_SAMPLE_ROWS = 30

STATE_TITLES = {
    RunState.QUEUED: "Waiting",
    RunState.STARTING: "Starting",
    RunState.RUNNING: "Running",
    RunState.FINISHED: "Finished",
    RunState.STOPPED: "Stopped",
    RunState.FAILED: "Failed",
    RunState.INTERRUPTED: "Interrupted",
}


def text(value: object) -> str:
    """Inert HTML of any value."""
    return html.escape(str(value))


def file_url(path: Path) -> str:
    """Where the page finds a file of the served folders."""
    return "/gradio_api/file=" + quote(path.as_posix())


def clock(moment: float | None) -> str:
    """A moment as date and time, or nothing."""
    return "" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def badge(state: RunState) -> str:
    """A run's state."""
    return f'<span class="badge {state.value}">{STATE_TITLES[state]}</span>'


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for; nothing where there are none."""
    inner = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in rows)
    return f'<dl class="recipe">{inner}</dl>' if inner else ""


def empty(message: str) -> str:
    """What stands where there is nothing yet."""
    return f'<div class="empty">{text(message)}</div>'


def bar(done: float, total: float) -> str:
    """A progress bar."""
    share = 0.0 if total <= 0 else min(1.0, done / total)
    return f'<div class="bar" role="progressbar" aria-valuenow="{share:.0%}"><i style="width:{share:.2%}"></i></div>'


def status(row: JobRow, history: History) -> str:
    """State, progress, speed, time left, memory, stage, warnings and error of a run."""
    step = history.last_step
    parts = [f'<div class="run-head"><span class="title">{text(row.title)}</span>{badge(row.state)}</div>']
    done, total = (step.step if step else 0), history.total_steps
    stage = history.stage if row.state is RunState.RUNNING and not total else None
    if row.state is RunState.FINISHED and total:
        done = total
    if row.state is RunState.FINISHED:
        parts.append(bar(1, 1))
    else:
        parts.append(bar(stage.done, stage.total) if stage else bar(done, total))
    facts: list[tuple[str, str]] = []
    if total:
        facts.append(("Step", f"{done} / {total}"))
    if step:
        facts += [("Loss", f"{step.loss:.4f}"), ("Epoch", f"{step.epoch:.1f}")]
        if step.steps_per_second:
            facts.append(("Speed", f"{step.steps_per_second:.2f} it/s"))
        if row.state is RunState.RUNNING:
            facts.append(("Time left", f"about {duration(step.eta_seconds)}"))
        if step.memory_bytes:
            facts.append(("Memory", size(step.memory_bytes)))
    if history.started and history.started[-1].device:
        device = f"{history.started[-1].device} {history.started[-1].precision}".strip()
        facts.append(("Device", device))
    if row.started and row.ended:
        facts.append(("Took", duration(row.ended - row.started)))
    parts.append(_facts(facts))
    parts.append(_stage(row, history))
    parts += [f'<div class="run-warning">{text(warning)}</div>' for warning in history.warnings[-5:]]
    parts.append(failure(row, history))
    return "".join(parts)


def status_line(row: JobRow, history: History) -> str:
    """State, stage, warnings and error of a run, without figures."""
    head = f'<div class="run-head">{badge(row.state)}{_stage(row, history)}</div>'
    warnings = "".join(f'<div class="run-warning">{text(warning)}</div>' for warning in history.warnings[-3:])
    return head + warnings + failure(row, history)


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f"<div><span>{text(name)}</span> <b>{text(value)}</b></div>" for name, value in facts)
    return f'<div class="facts">{inner}</div>'


def _stage(row: JobRow, history: History) -> str:
    if row.state is RunState.QUEUED:
        return '<div class="stage">Waiting for the job before it to end.</div>'
    if row.state is RunState.STARTING:
        return '<div class="stage">Starting: loading the libraries takes some seconds.</div>'
    if row.state is RunState.RUNNING and history.stage is None:
        return '<div class="stage">Getting ready.</div>'
    if row.state is RunState.RUNNING and history.stage:
        stage = history.stage
        count = f" ({stage.amount(' of ')})" if stage.total else ""
        left = f", about {duration(stage.eta_seconds)} left" if stage.eta_seconds else ""
        memory = f", {size(stage.memory_bytes)} of memory" if stage.memory_bytes else ""
        return f'<div class="stage">{text(stage.name)}{count}{left}{memory}</div>'
    return ""


def failure(row: JobRow, history: History) -> str:
    """Why a run is over without being finished, and what to do."""
    if row.state is RunState.FAILED and history.error:
        return f'<div class="run-error">{text(error_text(history.error))}</div>'
    if row.state is RunState.INTERRUPTED:
        place = "the last checkpoint" if row.is_extensible else "where it was"
        again = f"Resume goes on from {place}." if row.is_resumable else "Retry starts it again."
        return (
            '<div class="run-error">This run ended without saying why: its process was killed, the computer was '
            f"switched off, or memory ran out. {again}</div>"
        )
    return ""


def error_text(error: InkwashError) -> str:
    """An error as plain text."""
    return str(error)


def smooth(points: Sequence[tuple[int, float]], weight: float = 0.9) -> list[tuple[int, float]]:
    """An exponential moving average with the bias of its start taken out (Kingma & Ba 2015, arXiv 1412.6980, section 3)."""
    average, result = 0.0, []
    for index, (step, value) in enumerate(points, start=1):
        average = weight * average + (1 - weight) * value
        result.append((step, average / (1 - weight**index)))
    return result


def thin(points: Sequence[tuple[int, float]], limit: int = _MAX_POINTS) -> list[tuple[int, float]]:
    """At most `limit` points: the means of equal groups."""
    if len(points) <= limit:
        return list(points)
    group = -(-len(points) // limit)
    groups = [points[start : start + group] for start in range(0, len(points), group)]
    return [(chunk[len(chunk) // 2][0], sum(value for _, value in chunk) / len(chunk)) for chunk in groups]


def loss_chart(history: History) -> str:
    """The training loss, raw and smoothed, and the validation loss, as SVG that follows the theme's colours."""
    losses, validations = history.losses, history.validations
    if not losses and not validations:
        return empty("The loss is drawn here as training goes on.")
    raw, smoothed = thin(losses), thin(smooth(losses))
    values = [value for _, value in [*raw, *validations]]
    last = max([history.total_steps, *(step for step, _ in [*losses, *validations])])
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low * 0.9 - 1e-6, high * 1.1 + 1e-6
    inner_width = _CHART_WIDTH - _MARGIN_LEFT - _MARGIN_RIGHT
    inner_height = _CHART_HEIGHT - _MARGIN_TOP - _MARGIN_BOTTOM

    def place(point: tuple[int, float]) -> str:
        x = _MARGIN_LEFT + inner_width * point[0] / max(last, 1)
        y = _MARGIN_TOP + inner_height * (high - point[1]) / (high - low)
        return f"{x:.1f},{y:.1f}"

    parts = [f'<svg class="chart" viewBox="0 0 {_CHART_WIDTH} {_CHART_HEIGHT}" role="img" aria-label="Loss by step">']
    for index in range(5):
        value = low + (high - low) * index / 4
        y = _MARGIN_TOP + inner_height * (1 - index / 4)
        right = _CHART_WIDTH - _MARGIN_RIGHT
        parts.append(f'<line class="grid" x1="{_MARGIN_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_MARGIN_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y_text = _MARGIN_LEFT + inner_width * share, _CHART_HEIGHT - 6
        parts.append(f'<text x="{x:.1f}" y="{y_text}" text-anchor="middle">{round(last * share)}</text>')
    parts.append(f'<polyline class="raw" points="{" ".join(map(place, raw))}"/>')
    parts.append(f'<polyline class="smooth" points="{" ".join(map(place, smoothed))}"/>')
    parts.append(f'<polyline class="validation" points="{" ".join(map(place, validations))}"/>')
    for point in validations:
        x_text, y_text = place(point).split(",")
        title = f"<title>Validation loss {point[1]:.5f} after step {point[0]}</title>"
        parts.append(f'<circle class="validation" cx="{x_text}" cy="{y_text}" r="3.5">{title}</circle>')
    parts.append("</svg>")
    return "".join(parts) + _legend(history)


def timestep_chart(shares: Sequence[float]) -> str:
    """How often timesteps are trained, in equal parts of 0 to 1000, as SVG; nothing where there is nothing to draw."""
    if not shares:
        return ""
    width, height, foot = _CHART_WIDTH, 96, 22
    step, highest = width / len(shares), max(shares)
    parts = [
        f'<svg class="chart timesteps" viewBox="0 0 {width} {height}" role="img" aria-label="How often timesteps are trained">'
    ]
    for index, share in enumerate(shares):
        tall = (height - foot) * share / highest
        start = round(1000 * index / len(shares))
        title = f"<title>{share:.1%} of the draws from timestep {start}</title>"
        parts.append(
            f'<rect x="{index * step:.1f}" y="{height - foot - tall:.1f}" width="{step * 0.9:.1f}" height="{tall:.1f}">{title}</rect>'
        )
    for place, anchor, label in ((0, "start", "0, clean"), (0.5, "middle", "500"), (1, "end", "1000, pure noise")):
        parts.append(f'<text x="{place * width:.1f}" y="{height - 6}" text-anchor="{anchor}">{label}</text>')
    return "".join([*parts, "</svg>"])


def _legend(history: History) -> str:
    facts = []
    if history.losses:
        facts.append(("Smoothed training loss", f"{smooth(history.losses)[-1][1]:.4f}"))
    if history.validations:
        first, last = history.validations[0][1], history.validations[-1][1]
        facts.append(
            ("Validation loss (dots)", f"{first:.4f} → {last:.4f}" if len(history.validations) > 1 else f"{first:.4f}")
        )
    return _facts(facts)


def sample_grid(history: History) -> str:
    """Sample pictures, a row a step (newest first) and a column a prompt."""
    if not history.samples:
        return empty("Sample pictures appear here: at the start, along the way, and at the end.")
    steps = sorted({step for step, _ in history.samples}, reverse=True)[:_MAX_SAMPLE_ROWS]
    indexes = sorted({index for _, index in history.samples})
    prompts = {index: picture.prompt for (_, index), picture in sorted(history.samples.items())}
    head = "".join(f'<th title="{text(prompts[i])}"><div>{text(prompts[i])}</div></th>' for i in indexes)
    rows = []
    for step in steps:
        cells = "".join(_sample_cell(history.run, history.samples.get((step, index)), step) for index in indexes)
        rows.append(f"<tr><th>Step {step}</th>{cells}</tr>")
    return f'<div class="samples"><table><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _sample_cell(run: Run, picture: Any, step: int) -> str:
    if picture is None:
        return "<td></td>"
    path = run.folder / picture.path
    url = file_url(path)
    about = text(f"{picture.prompt} (step {step}, seed {picture.seed})")
    return (
        f'<td><a href="{url}" target="_blank" rel="noopener"><img src="{url}" alt="{about}" title="{about}" '
        f'loading="lazy"></a></td>'
    )


def preview(history: History) -> str:
    """The latest rough view of a picture that is being made, inside the page: its file goes when the picture is done."""
    if history.preview is None:
        return ""
    try:
        data = (history.run.folder / Path(history.preview.path).name).read_bytes()
    except OSError:
        return ""
    encoded = base64.b64encode(data).decode("ascii")
    return f'<div class="live-preview"><img src="data:image/jpeg;base64,{encoded}" alt="Preview"></div>'


def figures(lines: Sequence[str], tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> str:
    """What a LoRA tool found: sentences, then tables as (header, rows)."""
    parts = (
        [f'<div class="figure-lines">{"".join(f"<div>{text(line)}</div>" for line in lines)}</div>'] if lines else []
    )
    for header, rows in tables:
        head = "".join(f"<th>{text(cell)}</th>" for cell in header)
        body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
        parts.append(f'<div class="figures"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
    return "".join(parts)
