"""A training step of Inkwash against the arithmetic of diffusers' DreamBooth-LoRA script, side by side in one run.

    python benchmarks/training.py                                 (one row: the embedded model, 64 px, batch 8)
    python benchmarks/training.py --table --out speed.jsonl       (the full SD 1.5 architecture, every size and method)
    python benchmarks/training.py --table --rows '256px-b1-unet-*' '*-lora' --floor
    python benchmarks/training.py --against ours --set training.fused_backward=true --set training.max_grad_norm=0

A row's processes stay resident and take turns step by step, so that a machine that slows down slows all; the median of the
ratios of steps taken side by side counts, and no absolute time. `benchmarks/training_sides.py` says what each does. The table is
of random weights (`full_model.py`), made in a temporary folder (2.1 GB); its rows are named RESOLUTIONpx-bBATCH-PARTS-METHOD, where
qlora, pivotal, joint and ladder (QLoRA with gradient checkpointing) are plain LoRA with those settings.
With `--together 3` three methods of one size are measured beside the same script.
A row goes to the file as soon as it is measured, and one that is there is not measured again, so that the table can be
made in pieces; a row that fails says so and the others go on. `--set` changes our settings, as for a memory saver beside the
script; with `--against ours` our own step without the changes is compared with that with them: what a setting costs.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

PICTURES = 4


@dataclass(frozen=True)
class Row:
    """What is measured."""

    resolution: int
    batch_size: int
    parts: str
    method: str

    @property
    def name(self) -> str:
        """As `--rows` chooses it."""
        return f"{self.resolution}px-b{self.batch_size}-{self.parts}-{self.method}"


class Side:
    """A resident process."""

    def __init__(self, side: str, options: dict[str, Any], timeout: float) -> None:
        from trainer.jobs import worker_environment

        # Jobs are started in an environment of their own; the script gets the one that a user has.
        environment = dict(os.environ) if side == "script" else worker_environment()
        environment["PYTHONPATH"] = str(PROJECT)
        about = json.dumps({**options, "side": side, "started": time.time()})
        command = [sys.executable, str(PROJECT / "benchmarks/training_sides.py"), about]
        self.name, self._timeout = side, timeout
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises RuntimeError when none comes."""
        stdout = self._process.stdout
        assert stdout is not None
        # On Windows select takes sockets only.
        if os.name == "posix" and not select.select([stdout], [], [], self._timeout)[0]:
            raise RuntimeError(f"'{self.name}' took longer than {self._timeout:.0f} s")
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"'{self.name}' ended with code {self._process.wait()}")
        return json.loads(line)

    def step(self) -> dict[str, Any]:
        """One more step."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def measure(rows: list[Row], options: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """Measure rows of one size against the same script and floor; a failure is in the results.

    One method that fails is said in its row; where the script or the floor fails all rows say so.
    """
    beside: dict[str, dict[str, Any]] = {"other": options.changes} if options.against == "ours" else {"script": {}}
    if options.floor:
        beside["floor"] = {}
    sides: dict[str, Side] = {}
    starts: dict[str, dict[str, Any]] = {}
    steps: dict[str, list[dict[str, Any]]] = {}
    failed: dict[str, str] = {}

    def start(name: str, kind: str, row: Row, changes: dict[str, Any]) -> None:
        about = {"base": options.base, "dataset": options.dataset, "rank": options.rank, "threads": options.threads}
        # One after the other: the time to the first step is of a process that is alone. Nothing is cached before it.
        data = tempfile.mkdtemp(dir=place)
        sides[name] = Side(kind, {**about, **asdict(row), "changes": changes, "data": data}, options.timeout)
        starts[name], steps[name] = sides[name].answer(), []

    def step(name: str) -> None:
        steps[name].append(sides[name].step())

    def attempt(row: Row, action: Callable[[], object]) -> None:
        try:
            if row.name not in failed:
                action()
        except (RuntimeError, OSError, ValueError) as error:
            failed[row.name] = str(error)

    try:
        for kind, changes in beside.items():
            start(kind, kind, rows[0], changes)
        for row in rows:
            attempt(row, partial(start, row.name, "ours", row, {} if options.against == "ours" else options.changes))
        for _ in range(options.steps):
            for kind in beside:
                step(kind)
            for row in rows:
                attempt(row, partial(step, row.name))
    except (RuntimeError, OSError, ValueError) as error:
        failed = {row.name: str(error) for row in rows}
    finally:
        for side in sides.values():
            side.close()
    results = []
    for row in rows:
        if row.name in failed:
            results.append({"row": row.name, "error": failed[row.name]})
            continue
        kinds = {"ours": row.name, **{kind: kind for kind in beside}}
        figures = _figures(
            *({kind: found[name] for kind, name in kinds.items()} for found in (starts, steps)), options.clock
        )
        results.append({"row": row.name, **figures})
    return results


def _figures(starts: dict[str, dict[str, Any]], steps: dict[str, list[dict[str, Any]]], clock: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for side, own in steps.items():
        found[side] = {
            "seconds": round(statistics.median(step[clock] for step in own), 4),
            "peak_mb": round(own[-1]["peak_mb"]),
            "start_peak_mb": round(starts[side]["peak_mb"]),
            "seconds_to_ready": round(starts[side]["ready"], 1),
            "seconds_to_first_step": round(starts[side]["first"], 1),
        }
    for side in steps.keys() - {"ours"}:
        pairs = zip(steps[side], steps["ours"], strict=True)
        ratios = [theirs[clock] / mine[clock] for theirs, mine in pairs]
        found[f"{side}_to_ours"] = round(statistics.median(ratios), 3)
        found[f"memory_ours_to_{side}"] = round(found["ours"]["peak_mb"] / found[side]["peak_mb"], 3)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Results as a table in Markdown; a ratio above 1 says that ours is faster."""
    lines = [
        "| row | ours, s | other, s | times faster | ours, MB | other, MB | memory | first step, s | other's | of the floor |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if "error" in result:
            lines.append(f"| {result['row']} | {result['error']} |" + " |" * 8)
            continue
        side = "script" if "script" in result else "other"
        mine, theirs = result["ours"], result[side]
        floor = f"{1 / result['floor_to_ours']:.2f}" if "floor" in result else ""
        lines.append(
            f"| {result['row']} | {mine['seconds']:.3f} | {theirs['seconds']:.3f} | {result[f'{side}_to_ours']:.2f} "
            f"| {mine['peak_mb']} | {theirs['peak_mb']} | {result[f'memory_ours_to_{side}']:.2f} "
            f"| {mine['seconds_to_first_step']} | {theirs['seconds_to_first_step']} | {floor} |"
        )
    return "\n".join(lines)


def all_rows() -> list[Row]:
    """The table's rows."""
    from benchmarks.training_sides import VARIANTS
    from trainer.config.adapter import METHODS

    return [
        Row(resolution, batch_size, parts, method)
        for resolution in (256, 512)
        for batch_size in (1, 2)
        for parts in ("unet", "unet+text")
        for method in (*METHODS, *VARIANTS)
    ]


def _chosen(options: argparse.Namespace) -> list[Row]:
    if not options.table:
        return [Row(options.resolution, options.batch_size, options.parts, options.method)]
    return [row for row in all_rows() if any(fnmatch.fnmatch(row.name, pattern) for pattern in options.rows)]


def _groups(rows: list[Row], together: int) -> list[list[Row]]:
    """Rows of one size that are measured together, `together` at most."""
    sizes: dict[tuple[int, int, str], list[Row]] = {}
    for row in rows:
        sizes.setdefault((row.resolution, row.batch_size, row.parts), []).append(row)
    return [
        of_size[first : first + together] for of_size in sizes.values() for first in range(0, len(of_size), together)
    ]


def _measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Results of an earlier run of the same options, without those that failed."""
    out: Path | None = options.out
    if out is None or not out.exists():
        return []
    results = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines() if line]
    how = _how(options)
    return [result for result in results if "error" not in result and result.get("how") == how]


def _how(options: argparse.Namespace) -> dict[str, Any]:
    """All that a row's figures follow from beside its name."""
    names = ("base", "dataset", "rank", "clock", "threads", "steps", "against", "floor", "changes")
    return {name: getattr(options, name) for name in names}


def _few_pictures(place: Path) -> str:
    """A small data set, so that caching does not take an hour on a slow machine."""
    folder = place / "pictures"
    folder.mkdir()
    for path in sorted((PROJECT / "assets/datasets/ink-wash").glob("*.png"))[:PICTURES]:
        shutil.copy(path, folder)
    return str(folder)


def _change(text: str) -> dict[str, Any]:
    """`training.ema_decay=0.9` as a nested table."""
    path, _, value = text.partition("=")
    try:
        found: Any = json.loads(value)
    except ValueError:
        found = value
    for name in reversed(path.split(".")):
        found = {name: found}
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--table", action="store_true", help="the full SD 1.5 architecture, a row for each size and method"
    )
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN", help="rows of the table, by name")
    parser.add_argument("--out", type=Path, help="results as JSON lines; what is there is not measured again")
    parser.add_argument("--base", default="inkwash-tiny")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--parts", default="unet", choices=["unet", "text", "unet+text"])
    parser.add_argument("--method", default="lora", help="ours; the script has plain LoRA always")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of each side, after a first one")
    parser.add_argument("--threads", type=int, default=0, help="0 lets torch decide")
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "processor"], help="processor: on a busy machine without a GPU"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds that a step or a start may take")
    parser.add_argument(
        "--together",
        type=int,
        default=1,
        help="methods that are measured beside one script; on the CPU each takes 3 to 5 GB, and the script 5 to 9",
    )
    parser.add_argument("--floor", action="store_true", help="also the frozen UNet without any adapter")
    parser.add_argument("--against", default="script", choices=["script", "ours"])
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="of ours; with --against ours, of the other"
    )
    return parser


def main() -> int:
    """Measure, print JSON lines and a table."""
    from trainer.config.loading import merge

    parser = _parser()
    options = parser.parse_args()
    options.changes = merge({}, *(_change(text) for text in options.set))
    if options.against == "ours" and not options.set:
        parser.error("--against ours needs a --set: what the other one has")
    if options.together < 1 or (options.together > 1 and options.against == "ours"):
        parser.error("--together takes a number of methods, and one only with --against ours")
    rows = _chosen(options)
    how, results = _how(options), _measured(options)
    with tempfile.TemporaryDirectory() as folder:
        options.dataset = options.dataset or _few_pictures(Path(folder))
        todo = [row for row in rows if row.name not in {result["row"] for result in results}]
        if options.table and todo and options.base == "inkwash-tiny":
            from benchmarks.full_model import make_full_model

            options.base = str(make_full_model("sd1", Path(folder) / "sd1.safetensors"))
        for group in _groups(todo, options.together):
            found = [{**result, "how": how} for result in measure(group, options, Path(folder))]
            results += found
            lines = "".join(f"{json.dumps(result)}\n" for result in found)
            print(lines, end="", flush=True)
            if options.out:
                with open(options.out, "a", encoding="utf-8") as handle:
                    handle.write(lines)
    print("\n" + table([result for result in results if result["row"] in {row.name for row in rows}]))
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
