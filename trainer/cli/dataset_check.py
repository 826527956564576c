"""`inkwash dataset check`: what is wrong with a data set as training material, and fixes for it."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from trainer.cli.dataset_options import ActionOptions
from trainer.cli.dataset_prepare import undo
from trainer.cli.output import ProgressPrinter, print_json
from trainer.dataset.doctor.diagnosis import CHECKS, check_dataset, diagnose, fix, ignore, of_check
from trainer.dataset.doctor.findings import Report, Verdict
from trainer.dataset.doctor.settings import BASE, CaptionTokens, CheckSettings
from trainer.dataset.store import DatasetStore
from trainer.errors import ConfigError
from trainer.paths import data_folder

_SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `check`."""
    add = ActionOptions(parser, "check").add
    checks: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "CHECK", "choices": list(CHECKS)}
    add("--fix", "check", "do what these checks propose", **checks)
    add("--ignore", "check", "what these checks found is right as it is: do not show it again", **checks)
    taken_back = "take the last change of the data set back first"
    add("--undo", "check turns crops masks tags replace", taken_back, action="store_true")
    add("--resolution", "check preview crops", "training resolution; default: 512", type=int, metavar="PX")
    counting = f"base model, whose tokenizer counts the captions; default: {BASE}"
    add("--base", "check", counting, default=BASE, metavar="MODEL")
    limits: dict[str, Any] = {"type": int, "default": 225, "choices": get_args(CaptionTokens)}
    add("--max-caption-tokens", "check", "captions longer than this are cut in training; default: 225", **limits)


def run(arguments: argparse.Namespace) -> int:
    """Check, fix what is asked, and print. Returns 3 when pictures are better left out."""
    if len(arguments.what) != 1:
        raise ConfigError("`inkwash dataset check` needs the name of a data set.", fix="`inkwash dataset` lists them.")
    resolution = 512 if arguments.resolution is None else arguments.resolution
    if not 32 <= resolution <= 2048:
        raise ConfigError("The resolution must be from 32 to 2048.", where=f"--resolution {resolution}")
    data = data_folder(arguments.data_dir)
    store, name = DatasetStore(data), arguments.what[0]
    settings = CheckSettings(
        resolution=resolution, base=arguments.base, max_caption_tokens=arguments.max_caption_tokens
    )
    printer = ProgressPrinter(quiet=arguments.json)
    if arguments.undo:
        undo(store, name, quiet=arguments.json)
    report = check_dataset(
        data, name, settings, lambda what, done, total: printer.over(f"{what} {done}/{total}", is_last=done == total)
    )
    printer.close()
    # Each is one change. After it the rest may look otherwise: what is left out is no duplicate any more.
    for check in arguments.fix:
        found = [finding for finding in of_check(report, check) if finding.fix]
        if found:
            fix(store, store.get(name).name, found)
            printer.line(f"{CHECKS[check].title}: {len(found)} fixed; `--undo` takes it back.")
            report = diagnose(data, name, settings)
    for check in arguments.ignore:
        found = of_check(report, check)
        if found:
            ignore(store, store.get(name).name, found)
            printer.line(f"{CHECKS[check].title}: {len(found)} ignored; `--undo` takes it back.")
            report = diagnose(data, name, settings)
    if arguments.json:
        print_json(as_json(report))
    else:
        _print(report)
    return 3 if report.count(Verdict.LEAVE_OUT) or not report.pictures else 0


def as_json(report: Report) -> dict[str, Any]:
    """The report as data."""
    return {
        "summary": report.summary,
        "verdicts": {name: verdict.value for name, verdict in report.verdicts.items()},
        "findings": [
            {
                "check": finding.check,
                "pictures": finding.pictures,
                "message": finding.message,
                "verdict": finding.verdict.value,
                "keep": finding.keep,
                "fix": finding.fix.title if finding.fix else "",
            }
            for finding in report.findings
        ],
        "ignored": report.num_ignored,
        "unmeasured": report.num_unmeasured,
    }


def _print(report: Report) -> None:
    for name, check in CHECKS.items():
        found = of_check(report, name)
        if not found:
            continue
        print(f"\n{check.title} ({name}): {len(found)}")
        print(f"  {check.why}")
        for finding in found[:_SHOWN]:
            where = (
                f"{', '.join(finding.pictures[:4])}{' …' if len(finding.pictures) > 4 else ''} "
                if finding.pictures
                else ""
            )
            print(f"  - {where}{finding.message}" + (f" [fix: {finding.fix.title}]" if finding.fix else ""))
        if len(found) > _SHOWN:
            print(f"  - … and {len(found) - _SHOWN} more (--json lists all)")
    counts = ", ".join(f"{report.count(verdict)} {verdict.value}" for verdict in Verdict)
    ignored = f" {report.num_ignored} findings are ignored." if report.num_ignored else ""
    print(f"\n{report.summary}\n{counts}.{ignored}")
