"""What the Prepare section asks and does: how pictures are cut for a training, and their crops. Knows no widgets."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from app.services.settings import SettingsStore
from trainer.config.data import DataConfig
from trainer.config.loading import build_config, list_presets, load_preset
from trainer.dataset.cuts import BucketRow, Cut, bucket_rows, cuts_of
from trainer.dataset.flips import FLIP_VIEW_SIDE, advise_flips
from trainer.dataset.painted import decode_painted, subject_share
from trainer.dataset.preparing import set_backgrounds, set_crops, set_mask, turn_pictures, usable_pictures
from trainer.dataset.proposals import VIEW_SIDE, Proposal, propose_all
from trainer.dataset.scan import PictureFacts
from trainer.dataset.store import DatasetStore
from trainer.dataset.subjects import FINDERS, finder
from trainer.errors import DatasetError
from trainer.files import write_atomically
from trainer.paths import PRESETS, DataFolder

TRAIN_FORM = ""
"""The settings that stand in the Train form."""
MASK_COLOUR = "#ff2d78"
_DRAFT = "train-form"
_CUT_SETTINGS = (
    "resolution",
    "resolutions",
    "buckets",
    "bucket_step",
    "max_aspect_ratio",
    "bucket_no_upscale",
    "crop_variants",
    "horizontal_flip",
    "masks",
)


@dataclass(frozen=True)
class Overview:
    """How a data set is trained with some settings: its buckets, and every usable picture's cut at the main resolution."""

    buckets: list[BucketRow]
    cuts: list[Cut]
    config: DataConfig

    @property
    def summary(self) -> str:
        """Such as "24 pictures in 3 sizes; 4.2 % of their area is cut off, at most 18 % of one."."""
        if not self.cuts:
            return "There is no picture that can be trained on."
        lost = sum(cut.lost for cut in self.cuts) / len(self.cuts)
        most = max(cut.lost for cut in self.cuts)
        sizes = "1 size" if len(self.buckets) == 1 else f"{len(self.buckets)} sizes"
        pictures = "1 picture" if len(self.cuts) == 1 else f"{len(self.cuts):,} pictures"
        enlarged = sum(cut.scale > 1 for cut in self.cuts)
        blur = f" {enlarged:,} must be enlarged." if enlarged else ""
        return f"{pictures} in {sizes}: {lost:.1%} of their area is cut off on average, {most:.0%} at most.{blur}"


@dataclass(frozen=True)
class PreparedPicture:
    """One picture: the whole of it as a small view, its cut, and the file that shows what is trained, to the pixel."""

    cut: Cut
    whole: Path
    trained: Path
    mask: Path | None = None
    """Its mask as a coloured view, if it has one."""
    subject: float = 1.0
    """Share of the whole picture that the mask says is subject."""

    @property
    def facts(self) -> PictureFacts:
        """What is known of it."""
        return self.cut.facts


class DatasetPrepareService:
    """Cuts and crops of the data sets of a data folder."""

    def __init__(self, data: DataFolder, settings: SettingsStore) -> None:
        self._data = data
        self._settings = settings
        self.store = DatasetStore(data)
        self._preset_folders = (PRESETS, data.presets)

    def sources(self) -> list[tuple[str, str]]:
        """(label, value) of where settings can be taken from: the Train form, and the presets."""
        return [("As in the Train form", TRAIN_FORM), *((p.title, p.name) for p in list_presets(self._preset_folders))]

    def config(self, source: str) -> DataConfig:
        """The settings of a source that say how pictures are cut. Raises ConfigError: they do not go together."""
        if source != TRAIN_FORM:
            return build_config(load_preset(source, self._preset_folders)).data
        draft = self._settings.get(_DRAFT)
        values = draft if isinstance(draft, dict) else {}
        chosen = {name: values[f"data.{name}"] for name in _CUT_SETTINGS if f"data.{name}" in values}
        return build_config({"data": chosen}).data

    def overview(self, name: str, config: DataConfig) -> Overview:
        """How a data set is trained. Raises DatasetError."""
        pictures = self.store.scan(name).usable
        cuts = cuts_of(pictures, config)
        main = cuts_of(pictures, config.model_copy(update={"resolutions": []})) if config.resolutions else cuts
        return Overview(bucket_rows(cuts), main, config)

    def picture(self, overview: Overview, picture: str) -> PreparedPicture | None:
        """A picture by its name, or the first; None where there is none. Raises DatasetError: it cannot be read."""
        cut = next((cut for cut in overview.cuts if cut.facts.name == picture), None)
        cut = cut or next(iter(overview.cuts), None)
        if cut is None:
            return None
        whole = self.store.thumbnail(cut.facts.uncut, VIEW_SIDE)
        mask, subject = self._mask(cut.facts)
        return PreparedPicture(cut, whole, self._trained(cut), mask, subject)

    def _mask(self, facts: PictureFacts) -> tuple[Path | None, float]:
        """A view of a picture's mask, opaque where the subject is, and the share that is subject."""
        if facts.mask is None:
            return None, 1.0
        coverage = facts.mask.coverage().convert("L")
        path = (
            self._data.cache
            / "thumbnails"
            / facts.mask.sha256[:2]
            / f"{facts.mask.sha256}-mask{facts.mask.turn or ''}.png"
        )
        if not path.exists():
            view = coverage.copy()
            view.thumbnail((VIEW_SIDE, VIEW_SIDE), Image.Resampling.BOX)
            colour = Image.new("RGBA", view.size, MASK_COLOUR)
            colour.putalpha(view)
            write_atomically(path, lambda temporary: colour.save(temporary, format="PNG"), "the view of a mask")
        return path, subject_share(coverage)

    def set_mask(self, name: str, picture: str, painted: str) -> bool:
        """Keep what was painted (a PNG as a data URL, opaque where the subject is); empty takes the mask of the record away.

        Returns whether anything changed. Raises DatasetError, ResourceError.
        """
        if not painted:
            return set_mask(self.store, name, picture, None)
        start, _, text = painted.partition(",")
        try:
            data = base64.b64decode(text if start == "data:image/png;base64" else "", validate=True)
        except ValueError:
            data = b""
        return set_mask(self.store, name, picture, decode_painted(data))

    def _trained(self, cut: Cut) -> Path:
        """What is trained of a picture, without loss, in the cache."""
        key = hashlib.sha256(f"{cut.facts.content} {cut.bucket}".encode()).hexdigest()
        path = self._data.cache / "thumbnails" / key[:2] / f"{key}-trained.png"
        if not path.exists():
            image = cut.picture()
            write_atomically(path, lambda temporary: image.save(temporary, format="PNG"), "a preview")
        return path

    def set_crop(self, name: str, picture: str, box: Sequence[Any] | None) -> bool:
        """Crop a picture; None takes the crop away. Returns whether anything changed. Raises DatasetError."""
        if box is not None and any(value is None for value in box):
            raise DatasetError("The crop is not complete.", where=picture, fix="Fill in all four numbers, or draw it.")
        return set_crops(self.store, name, {picture: box})

    def turn(self, overview: Overview, name: str, picture: str, find: str | None, degrees: int) -> int:
        """Turn a picture as it lies now, or all pictures of an overview whose names hold the words `find`; returns how many.

        Raises: DatasetError: there is no such picture, or the degrees are no quarters.
        """
        names = [picture] if find is None else [cut.facts.name for cut in matching(overview.cuts, find)]
        return len(names) if turn_pictures(self.store, name, names, degrees) else 0

    def finders(self) -> list[tuple[str, str]]:
        """(title, name) of the ways to look for subjects."""
        return [(kind.title, name) for name, kind in FINDERS.items()]

    def finder_hints(self) -> str:
        """What each of them sees and does not, in a sentence or two."""
        return " ".join(f"{kind.title.split(' (')[0]}: {kind.hint}" for kind in FINDERS.values())

    def propose(
        self, overview: Overview, pictures: Sequence[str], way: str, *, close: bool
    ) -> Iterator[tuple[int, Proposal | None]]:
        """Look for subjects in pictures, or in all where none is named: (pictures done, the proposal for the last of them).

        Raises: ConfigError, ResourceError: the way needs a library that is not installed.
        """
        wanted = set(pictures)
        chosen = [cut.facts for cut in overview.cuts if not wanted or cut.facts.name in wanted]
        every = propose_all(chosen, self._view, finder(way), overview.config, close=close)
        return enumerate(every, start=1)

    def _view(self, facts: PictureFacts) -> Path:
        return self.store.thumbnail(facts, VIEW_SIDE)

    def fill(self, name: str, picture: str, colour: str | None) -> bool:
        """Fill what is no subject with a colour; None leaves the picture as it is. Returns whether anything changed. Raises DatasetError."""
        return set_backgrounds(self.store, name, [picture], colour)

    def flip_advice(self, name: str) -> str:
        """Whether the pictures should be shown mirrored, in a sentence or two. Raises DatasetError."""
        pictures = self.store.scan(name).usable
        return advise_flips(pictures, lambda facts: self.store.thumbnail(facts, FLIP_VIEW_SIDE)).sentence

    def accept(self, name: str, proposals: Mapping[str, tuple[Sequence[int], int]]) -> int:
        """Set proposed crops, each with the turn that its picture had then, as one change; returns how many. Raises DatasetError."""
        if not proposals:
            return 0
        known = usable_pictures(self.store, name, list(proposals))
        moved = [picture for picture, (_, turn) in proposals.items() if known[picture].turn != turn]
        if moved:
            raise DatasetError("The picture was turned since.", where=moved[0], fix="Let it look again.")
        boxes = {picture: box for picture, (box, _) in proposals.items()}
        first = next(iter(boxes))
        title = f"Proposed crop of {first}" if len(boxes) == 1 else f"Proposed crops of {len(boxes)} pictures"
        set_crops(self.store, name, boxes, title)
        return len(boxes)


def matching(cuts: Sequence[Cut], words: str) -> list[Cut]:
    """The cuts of pictures whose names hold all the words, those that lose most first."""
    wanted = words.casefold().split()
    found = [cut for cut in cuts if all(word in cut.facts.name.casefold() for word in wanted)]
    return sorted(found, key=lambda cut: -round(cut.lost, 6))
