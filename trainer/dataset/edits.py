"""What the record says of single pictures besides captions: applied to what the scan found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trainer.dataset.backgrounds import Background
from trainer.dataset.crops import crop_of
from trainer.dataset.masks import MaskFacts, shape_problem
from trainer.dataset.painted import mask_path
from trainer.dataset.problems import warning
from trainer.dataset.record import Record
from trainer.dataset.scan import PictureFacts
from trainer.dataset.turns import turned_box, turned_size


def with_edits(facts: PictureFacts, record: Record, folder: Path) -> PictureFacts:
    """A picture as the record in `folder` wants it: its size is that of its crop from here on."""
    if not facts.is_usable:
        return facts
    return _cropped(_filled(_turned(_masked(facts, record, folder), record), record), record)


def _turned(facts: PictureFacts, record: Record) -> PictureFacts:
    turn = record.turns.get(facts.name, 0)
    if not turn:
        return facts
    width, height = turned_size((facts.width, facts.height), turn)
    mask = facts.mask
    if mask is not None:
        sides = turned_size((mask.width, mask.height), turn)
        mask = replace(mask, width=sides[0], height=sides[1], turn=turn)
    return replace(facts, turn=turn, width=width, height=height, mask=mask)


def _filled(facts: PictureFacts, record: Record) -> PictureFacts:
    colour = record.backgrounds.get(facts.name)
    if colour is None:
        return facts
    if facts.mask is None:
        problem = warning(
            "background", "Its background is not filled: it has no mask.", "Paint one, or keep the background."
        )
        return replace(facts, problems=(*facts.problems, problem))
    return replace(facts, background=Background(facts.mask, colour))


def _masked(facts: PictureFacts, record: Record, folder: Path) -> PictureFacts:
    entry = record.masks.get(facts.name)
    if entry is None:
        return facts
    sha256, width, height = entry
    path = mask_path(folder, sha256)
    # What is wrong with a mask file beside the picture does not matter any more.
    kept = tuple(problem for problem in facts.problems if not problem.code.startswith("mask_"))
    if not path.is_file():
        problem = warning("mask_unreadable", "Its painted mask is gone from the data set's folder.", "Paint it anew.")
        return replace(facts, mask=None, problems=(*kept, problem))
    wrong = shape_problem("that was painted", (width, height), (facts.width, facts.height))
    if wrong is not None:
        return replace(facts, mask=None, problems=(*kept, wrong))
    return replace(facts, mask=MaskFacts(path, sha256, width, height), problems=kept)


def _cropped(facts: PictureFacts, record: Record) -> PictureFacts:
    box = record.crops.get(facts.name)
    if box is None:
        return facts
    size = facts.width, facts.height
    try:
        crop = crop_of(turned_box(box, turned_size(size, facts.turn), facts.turn), size)
    except ValueError as error:
        # The file was replaced by another since.
        problem = warning("crop", f"Its crop is not used: {error}.", "Set it anew in the section Prepare.")
        return replace(facts, problems=(*facts.problems, problem))
    if crop is None:
        return facts
    return replace(facts, crop=crop, width=crop.size[0], height=crop.size[1])
