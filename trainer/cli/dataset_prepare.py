"""`inkwash dataset preview`, `crops` and `masks`: what will be trained of each picture, and which part of it counts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.cli.dataset_options import ActionOptions
from trainer.cli.output import ProgressPrinter, print_json, print_table
from trainer.config.data import DataConfig
from trainer.config.loading import build_config, load_preset
from trainer.dataset.backgrounds import checked_colour
from trainer.dataset.cutout_job import make_masks
from trainer.dataset.cuts import Cut, bucket_rows, cuts_of
from trainer.dataset.flips import FLIP_VIEW_SIDE, advise_flips
from trainer.dataset.masks import shape_problem
from trainer.dataset.painted import subject_share
from trainer.dataset.pictures import open_coverage
from trainer.dataset.preparing import set_backgrounds, set_crops, set_mask, usable_pictures
from trainer.dataset.proposals import VIEW_SIDE, Proposal, propose_all
from trainer.dataset.store import DatasetStore
from trainer.dataset.subjects import FINDERS, finder
from trainer.errors import ConfigError, DatasetError
from trainer.files import disk_errors, write_atomically
from trainer.paths import PRESETS, DataFolder, data_folder

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `preview`, `crops` and `masks`."""
    add = ActionOptions(parser, "preview, crops, masks").add
    add("--preset", "preview crops", "the preset whose settings say how pictures are cut", metavar="NAME")
    written = "write the pictures, to the pixel as they are trained, into an empty folder"
    add("--pictures", "preview", written, metavar="FOLDER")
    add("--flips", "preview", "say whether the pictures should be mirrored", action="store_true")
    box: dict[str, Any] = {"nargs": 5, "metavar": ("PICTURE", "LEFT", "TOP", "RIGHT", "BOTTOM")}
    part = "let only this part of a picture count, in px of the upright picture as it is turned"
    add("--crop", "crops", part, action="append", default=[], **box)
    add("--whole", "crops", "take crops away", nargs="+", default=[], metavar="PICTURE")
    proposing = "propose crops that keep the subject: most detail, or faces (extra `faces`)"
    add("--propose", "crops", proposing, choices=list(FINDERS))
    add("--close", "crops", "propose them close to the subject", action="store_true")
    add("--accept", "crops", "set what is proposed, as one change", action="store_true")
    keeping = "keep a copy of this file as the picture's mask; white is the subject"
    add("--mask", "masks", keeping, nargs=2, action="append", default=[], metavar=("PICTURE", "FILE"))
    add("--unmask", "masks", "take kept masks away", nargs="+", default=[], metavar="PICTURE")
    filling = "fill the backgrounds of all pictures that have a mask, such as white or #808080; none: leave them"
    add("--fill", "masks", filling, metavar="COLOUR")
    making = "make them with an ONNX segmentation model of this machine (U2-Net, IS-Net, BiRefNet)"
    add("--model", "masks", making, metavar="FILE|ID")


def preview(arguments: argparse.Namespace) -> int:
    """Print the buckets, and what each picture loses, most first."""
    data, store, name = opened(arguments, "preview")
    config = _settings(arguments, data)
    pictures = usable_pictures(store, name)
    if arguments.flips:
        advice = advise_flips(list(pictures.values()), lambda facts: store.thumbnail(facts, FLIP_VIEW_SIDE))
        print_json(asdict(advice)) if arguments.json else print(advice.sentence)
        return 0
    cuts = cuts_of(pictures.values(), config)
    if arguments.pictures:
        _write(Path(arguments.pictures).expanduser(), cuts)
    rows = bucket_rows(cuts)
    if arguments.json:
        buckets = [
            {
                "size": [row.bucket.width, row.bucket.height],
                "pictures": row.num_pictures,
                "mean_lost": round(row.mean_lost, 4),
                "most_lost": round(row.most_lost, 4),
                "enlarged": row.num_enlarged,
            }
            for row in rows
        ]
        print_json({"buckets": buckets, "pictures": [_as_json(cut) for cut in cuts]})
        return 0
    print_table(
        ["size", "pictures", "lost (mean)", "lost (most)", "enlarged"],
        [
            [
                size(row.bucket.width, row.bucket.height),
                str(row.num_pictures),
                f"{row.mean_lost:.1%}",
                f"{row.most_lost:.1%}",
                str(row.num_enlarged),
            ]
            for row in rows
        ],
    )
    print()
    shown = sorted(cuts, key=lambda cut: -cut.lost)[:_SHOWN]
    print_table(
        ["picture", "trained at", "part of the picture (px)", "lost", "scaled"],
        [
            [
                cut.facts.name,
                size(cut.bucket.width, cut.bucket.height),
                ", ".join(f"{value:.0f}" for value in cut.box),
                f"{cut.lost:.1%}",
                f"{cut.scale:.2f}",
            ]
            for cut in shown
        ],
    )
    if len(cuts) > len(shown):
        print(f"… and {len(cuts) - len(shown)} more (--json lists all)")
    if config.crop_variants:
        print(f"{config.crop_variants} cuts at other places take turns with each picture that is longer than its size.")
    return 0


def crops(arguments: argparse.Namespace) -> int:
    """Set and remove crops, and print those that there are."""
    data, store, name = opened(arguments, "crops")
    if (arguments.accept or arguments.close) and not arguments.propose:
        option = "--accept" if arguments.accept else "--close"
        raise ConfigError(
            f"{option} is for crops that are proposed.", fix="Add `--propose detail` or `--propose faces`."
        )
    if arguments.undo:
        undo(store, name, quiet=arguments.json)
    boxes: dict[str, Sequence[float] | None] = dict.fromkeys(arguments.whole)
    boxes |= {picture: _box(picture, numbers) for picture, *numbers in arguments.crop}
    if boxes:
        set_crops(store, name, boxes)
    if arguments.propose:
        return _propose(arguments, store, name, _settings(arguments, data))
    found = [facts for facts in store.scan(name).pictures if facts.crop is not None]
    if arguments.json:
        print_json({"crops": {facts.name: list(facts.crop.box) for facts in found if facts.crop}})
        return 0
    rows = [
        [facts.name, size(*facts.whole_size), ", ".join(map(str, facts.crop.box)), size(*facts.crop.size)]
        for facts in found
        if facts.crop
    ]
    print_table(["picture", "whole", "left, top, right, bottom", "crop"], rows)
    if boxes:
        print("`inkwash dataset crops NAME --undo` takes the change back.")
    return 0


def _propose(arguments: argparse.Namespace, store: DatasetStore, name: str, config: DataConfig) -> int:
    """Print proposals, and set them where that is asked."""
    find, pictures = finder(arguments.propose), usable_pictures(store, name)
    printer = ProgressPrinter(quiet=arguments.json)
    proposals: list[Proposal] = []
    every = propose_all(
        pictures.values(), lambda facts: store.thumbnail(facts, VIEW_SIDE), find, config, close=arguments.close
    )
    for done, proposal in enumerate(every, start=1):
        printer.over(f"looking {done}/{len(pictures)}", is_last=done == len(pictures))
        proposals += [proposal] if proposal else []
    printer.close()
    if arguments.accept and proposals:
        title = f"Proposed crops of {len(proposals)} pictures"
        set_crops(store, name, {proposal.picture: proposal.box for proposal in proposals}, title)
    if arguments.json:
        print_json({"proposals": [asdict(proposal) for proposal in proposals], "accepted": arguments.accept})
        return 0
    print_table(
        ["picture", "proposed left, top, right, bottom", "seen"],
        [[proposal.picture, ", ".join(map(str, proposal.box)), proposal.seen] for proposal in proposals],
    )
    if proposals and arguments.accept:
        print(f"{len(proposals)} crops are set; `inkwash dataset crops NAME --undo` takes them back.")
    elif proposals:
        print("Nothing is changed yet: add --accept to set them, or --crop for some of them.")
    else:
        print("Nothing is proposed: no subject is seen, or what is trained already holds it.")
    return 0


def masks(arguments: argparse.Namespace) -> int:
    """Keep, make and take away masks, and print those that there are."""
    _, store, name = opened(arguments, "masks")
    own = store.get(name).name
    colour = None if arguments.fill in (None, "none") else checked_colour(arguments.fill)
    if arguments.undo:
        undo(store, own, quiet=arguments.json)
    pictures = usable_pictures(store, name, [*arguments.unmask, *(picture for picture, _ in arguments.mask)])
    for picture in arguments.unmask:
        set_mask(store, name, picture, None)
    for picture, file in arguments.mask:
        coverage = open_coverage(Path(file).expanduser())
        wrong = shape_problem(file, coverage.size, pictures[picture].whole_size)
        if wrong is not None:
            raise DatasetError(wrong.message, where=picture, fix=wrong.fix)
        set_mask(store, name, picture, coverage)
    if arguments.model:
        _make_masks(arguments, store, own)
    found = [facts for facts in store.scan(name).usable if facts.mask is not None]
    if arguments.fill:
        if colour is not None and not found:
            fix = "Make masks first: --model FILE, or --mask PICTURE FILE."
            raise DatasetError("No picture has a mask, so there is no background to fill.", where=name, fix=fix)
        set_backgrounds(store, name, [facts.name for facts in found], colour)
    if arguments.json:
        print_json({"masks": {facts.name: str(facts.mask.path) for facts in found if facts.mask}})
        return 0
    rows = [
        [facts.name, f"{subject_share(open_coverage(facts.mask.path)):.0%}", str(facts.mask.path)]
        for facts in found
        if facts.mask
    ]
    print_table(["picture", "subject", "mask"], rows)
    return 0


def _make_masks(arguments: argparse.Namespace, store: DatasetStore, name: str) -> None:
    printer = ProgressPrinter(quiet=arguments.json)

    def tell(done: int, total: int) -> None:
        printer.over(f"cutting out {done}/{total}", is_last=done == total)

    count = make_masks(store, name, arguments.model, tell, printer.line)
    printer.close()
    printer.line(f"{count} masks made; `--undo` takes them back." if count else "No mask was made.")


def opened(arguments: argparse.Namespace, action: str) -> tuple[DataFolder, DatasetStore, str]:
    """The data folder, its data sets, and the name of the one that an action is for. Raises ConfigError: none is named."""
    if len(arguments.what) != 1:
        raise ConfigError(
            f"`inkwash dataset {action}` needs the name of a data set.", fix="`inkwash dataset` lists them."
        )
    data = data_folder(arguments.data_dir)
    return data, DatasetStore(data), arguments.what[0]


def undo(store: DatasetStore, name: str, *, quiet: bool = False) -> None:
    """Take the last change of a data set back, and say which (on stderr where what is printed is data)."""
    change = store.undo(store.get(name).name)
    said = f"{change.title}: taken back." if change else "There is nothing to take back."
    print(said, file=sys.stderr if quiet else sys.stdout)


def _settings(arguments: argparse.Namespace, data: DataFolder) -> DataConfig:
    layers = [load_preset(arguments.preset, (PRESETS, data.presets))] if arguments.preset else []
    if arguments.resolution is not None:
        layers.append({"data": {"resolution": arguments.resolution}})
    return build_config(*layers).data


def _box(picture: str, numbers: Sequence[str]) -> list[int]:
    try:
        return [int(number) for number in numbers]
    except ValueError as error:
        raise ConfigError("A crop has four whole numbers.", where=f"--crop {picture} {' '.join(numbers)}") from error


def _write(folder: Path, cuts: Sequence[Cut]) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError("This folder is not empty.", where=str(folder), fix="Name one that does not exist yet.")
    with disk_errors(folder, "the pictures"):
        folder.mkdir(parents=True, exist_ok=True)
    for index, cut in enumerate(cuts):
        # Numbered: pictures of two folders may have one name.
        stem = f"{index:05d} {cut.facts.path.stem[:100]} {cut.bucket.width}x{cut.bucket.height}"
        image = cut.picture()
        write_atomically(
            folder / f"{stem}.png", lambda path, image=image: image.save(path, format="PNG"), "a trained picture"
        )


def size(width: int, height: int) -> str:
    """Such as "640 x 480"."""
    return f"{width} x {height}"


def _as_json(cut: Cut) -> dict[str, Any]:
    return {
        "picture": cut.facts.name,
        "size": [cut.bucket.width, cut.bucket.height],
        "box": [round(value, 3) for value in cut.box],
        "lost": round(cut.lost, 4),
        "scale": round(cut.scale, 4),
        "crop": list(cut.facts.crop.box) if cut.facts.crop else None,
    }
