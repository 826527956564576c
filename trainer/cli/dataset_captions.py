"""`inkwash dataset tags|replace|export-captions|import-captions`: captions of a data set, as a whole."""

from __future__ import annotations

import argparse

from trainer.cli.dataset_options import ActionOptions
from trainer.cli.dataset_prepare import undo
from trainer.cli.output import ProgressPrinter, print_json, print_table
from trainer.dataset.caption_files import export_captions, take_file_captions
from trainer.dataset.captioned import CaptionedPicture, CaptionFilter, captioned_pictures, plan_edit
from trainer.dataset.find_replace import Search, replace_text
from trainer.dataset.store import DatasetInfo, DatasetStore
from trainer.dataset.tags import CaptionEdit, count_tags, split_tags, tag_edit
from trainer.errors import ConfigError
from trainer.paths import DataFolder, data_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of these actions."""
    options = ActionOptions(parser, "tags, replace, export-captions")
    add, edits = options.add, "tags replace"
    add("--having", edits, "only captions with all of these tags", default="", metavar="TAGS")
    add("--lacking", edits, "only captions with none of these", default="", metavar="TAGS")
    add("--apply", edits, "do it; without, it is only shown", action="store_true")
    add("--regex", "replace", "what to look for is a regular expression", action="store_true")
    add("--match-case", "replace", "tell upper from lower case", action="store_true")
    replacing = "replace files that say something else; copies of them go to the trash"
    add("--overwrite", "export-captions", replacing, action="store_true")


def tags(arguments: argparse.Namespace) -> int:
    """Count the tags, or change them."""
    store, info, rest = _opened(arguments, "inkwash dataset tags NAME [ACTION TAGS [NEW NAME]]", at_most=4)
    if rest:
        action, chosen, new = (*rest, "", "")[:3]
        return _edit(arguments, store, info, tag_edit(action, chosen, new, trigger_word=info.trigger_word))
    counts = count_tags(picture.captions for picture in _chosen(arguments, store))
    if arguments.json:
        print_json({"tags": [{"tag": item.tag, "pictures": item.pictures} for item in counts]})
    else:
        print_table(["tag", "pictures"], [[item.tag, str(item.pictures)] for item in counts])
    return 0


def replace(arguments: argparse.Namespace) -> int:
    """Find and replace in the captions."""
    usage = "inkwash dataset replace NAME FIND REPLACEMENT"
    store, info, rest = _opened(arguments, usage, at_most=3)
    if len(rest) != 2:
        raise ConfigError("It is not said what to find and what to put in its place.", fix=f"Type `{usage}`.")
    search = Search(rest[0], arguments.regex, not arguments.match_case)
    return _edit(arguments, store, info, replace_text(search, rest[1]))


def export(arguments: argparse.Namespace) -> int:
    """Write the captions beside the pictures."""
    store, info, _ = _opened(arguments, "inkwash dataset export-captions NAME", at_most=1)
    printer = ProgressPrinter(quiet=arguments.json)
    report = export_captions(
        store,
        _data(arguments),
        info.name,
        overwrite=arguments.overwrite,
        progress=lambda done, total: printer.over(f"writing {done}/{total}"),
    )
    printer.close()
    if arguments.json:
        print_json(
            {
                "written": report.num_written,
                "same": report.num_same,
                "replaced": [item.name for item in report.replaced],
                "left_out": [finding.where for finding in report.left_out],
                "backup": report.backup,
            }
        )
        return 0
    print(report.summary())
    for finding in report.left_out:
        print(f"{finding.where}: {finding.message}")
    if report.backup is not None:
        print(f"The old files: {report.backup}")
    return 0


def take(arguments: argparse.Namespace) -> int:
    """Let the files say the captions again."""
    store, info, _ = _opened(arguments, "inkwash dataset import-captions NAME", at_most=1)
    number = take_file_captions(store, info.name)
    if arguments.json:
        print_json({"changed": number})
    else:
        print(f"{number} captions changed." if number else "The files and the data set say the same.")
    return 0


def _edit(arguments: argparse.Namespace, store: DatasetStore, info: DatasetInfo, edit: CaptionEdit) -> int:
    plan = plan_edit(_chosen(arguments, store), edit)
    if arguments.apply and plan.changes:
        store.write_captions(info.name, plan.values, plan.title)
    if arguments.json:
        changes = [{"picture": c.name, "before": c.before, "after": c.after} for c in plan.changes]
        print_json({"title": plan.title, "applied": arguments.apply, "pictures": plan.num_pictures, "changes": changes})
        return 0
    for change in plan.changes:
        print(change.name)
        print("  - " + "\n  - ".join(change.before or ("(no caption)",)))
        print("  + " + "\n  + ".join(change.after or ("(no caption)",)))
    done = (
        "changed; `inkwash dataset tags NAME --undo` takes it back"
        if arguments.apply
        else "would change; --apply does it"
    )
    print(f"{plan.title}: {len(plan.changes)} of {plan.num_pictures} captions {done}.")
    return 0


def _chosen(arguments: argparse.Namespace, store: DatasetStore) -> list[CaptionedPicture]:
    chosen = CaptionFilter(tuple(split_tags(arguments.having)), tuple(split_tags(arguments.lacking)))
    printer = ProgressPrinter(quiet=arguments.json)
    try:
        pictures = captioned_pictures(
            store, arguments.what[0], lambda done, total: printer.over(f"looking at {done}/{total}")
        )
    finally:
        printer.close()
    return chosen.apply(pictures)


def _data(arguments: argparse.Namespace) -> DataFolder:
    return data_folder(arguments.data_dir)


def _opened(arguments: argparse.Namespace, usage: str, *, at_most: int) -> tuple[DatasetStore, DatasetInfo, list[str]]:
    if not 1 <= len(arguments.what) <= at_most:
        raise ConfigError(f"`dataset {arguments.name}` is used in another way.", fix=f"Type `{usage}`.")
    store = DatasetStore(_data(arguments))
    if arguments.undo:
        undo(store, arguments.what[0], quiet=arguments.json)
    return store, store.get(arguments.what[0]), list(arguments.what[1:])
