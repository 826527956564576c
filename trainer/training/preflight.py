"""What is checked before time is spent: pictures, sizes, disk. What can go on with a note gives one, what cannot raises."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence

import torch

from trainer.config.optimizer import missing_part
from trainer.config.run import RunConfig
from trainer.config.unused import unused_settings
from trainer.data.examples import Concept, Example, mask_of
from trainer.data.masks import MaskCache
from trainer.data.variants import Variant
from trainer.dataset.catalog import DatasetCatalog, DatasetInfo
from trainer.dataset.kohya import kohya_folders
from trainer.dataset.scan import PictureFacts, preflight
from trainer.errors import ConfigError, DatasetError, Finding
from trainer.events import Warned
from trainer.files import free_bytes, require_free
from trainer.jobs import JobContext
from trainer.lora_files.writing import DTYPES
from trainer.models.components import Components
from trainer.models.text import count_tokens
from trainer.paths import DataFolder
from trainer.units import size

log = logging.getLogger(__name__)
_SHOWN = 5
_BYTES = 4
_MARGIN_BYTES = 64 * 2**20


def check_optimizer(context: JobContext, config: RunConfig, device: torch.device) -> None:
    """Refuse an optimizer that cannot be used here, and say what of it may surprise. Raises ConfigError."""
    optimizer, facts = config.optimizer, config.optimizer.facts
    module, extra = facts.requires
    problem = missing_part(optimizer)
    if module and not problem:
        try:
            importlib.import_module(module)
        except Exception as error:  # Broad on purpose: a library that looks for a driver can fail in any way.
            log.exception("%s cannot be imported", module)
            problem = f"{facts.title} needs {module}, which cannot be used ({error}): `python launch.py --extra {extra} --reinstall` tries again"
    if problem:
        raise ConfigError("The optimizer cannot be used.", where="optimizer.name", fix=f"{problem}.")
    if module and device.type == "cpu":
        context.emit(
            Warned(
                message=f"{facts.title} is made for graphics cards; on a processor it is a hundred times slower than AdamW."
            )
        )
    adapter = config.adapter
    if facts.finds_rate and adapter.trains_unet + adapter.trains_text + bool(adapter.embedding.num_vectors) > 1:
        context.emit(
            Warned(
                message=f"{facts.title} finds one learning rate for all that is trained; the rates that are set only say what is."
            )
        )


def say_unused(context: JobContext, config: RunConfig) -> None:
    """Name the settings that do nothing."""
    unused = unused_settings(config)
    if unused:
        context.emit(Warned(message=f"Settings that do nothing here ({len(unused)}): {'; '.join(unused)}."))


def read_concepts(context: JobContext, config: RunConfig, data: DataFolder) -> tuple[DatasetInfo, list[Concept]]:
    """The first data set, and all data sets of the run with their usable pictures; warnings name those passed over.

    Raises: DatasetError: there is no such data set, it has no usable picture, or its masks cannot be used. Cancelled.
    """
    infos, concepts = list[DatasetInfo](), list[Concept]()
    for settings in config.data.all_concepts:
        info, pictures = read_pictures(context, config, data, settings.dataset)
        label = _unused_label(info.title, [concept.label for concept in concepts]) if concepts else ""
        infos.append(info)
        concepts.append(Concept(label, pictures, settings))
    same = [info.title for index, info in enumerate(infos) if info.folder in {other.folder for other in infos[:index]}]
    if same:
        raise ConfigError(
            f"The data set '{same[0]}' is named twice.", where="data.concepts", fix="Give it repeats instead."
        )
    _check_masks(context, config, [picture for concept in concepts for picture in concept.pictures])
    return infos[0], concepts


def _unused_label(title: str, taken: Sequence[str]) -> str:
    label, number = title, 2
    while label in taken:
        label, number = f"{title} ({number})", number + 1
    return label


def read_pictures(
    context: JobContext, config: RunConfig, data: DataFolder, name: str
) -> tuple[DatasetInfo, tuple[PictureFacts, ...]]:
    """A data set and its usable pictures; a warning names those that are passed over.

    Raises: DatasetError: there is no such data set, or it has no usable picture. Cancelled.
    """
    catalog = DatasetCatalog(data)
    info = catalog.get(name)

    def progress(done: int, total: int) -> None:
        context.check_stop()
        context.stage("Checking pictures", done, total)

    scan = catalog.scan(name, progress=progress)
    pictures = scan.require_usable()
    if kohya_folders(info.folder):
        context.emit(
            Warned(
                message=f"{info.title} has folders such as '10_robot', and their numbers are not read as repeats here: "
                "`inkwash train --concepts-from FOLDER` makes a concept of each, as does adding the folder in the form."
            )
        )
    bad = [picture for picture in scan.pictures if not picture.is_usable]
    if bad:
        reasons = [f"{picture.name} ({_reason(picture)})" for picture in bad]
        context.emit(Warned(message=f"{len(bad)} of {len(scan.pictures)} pictures cannot be used: {_list(reasons)}"))
    notes = preflight(
        pictures,
        max(config.data.all_resolutions),
        config.data.max_aspect_ratio if config.data.buckets else 1.0,
        enlarges=not config.data.bucket_no_upscale,
    )
    orphans = [problem.message for problem in scan.problems if problem.code == "mask_orphan"]
    if config.data.masks != "off" and orphans:
        context.emit(Warned(message=f"Masks that are not used ({len(orphans)}): {_list(orphans)}"))
    if notes:
        context.emit(Warned(message=f"Notes on pictures ({len(notes)}): {_list([str(note) for note in notes])}"))
    return info, pictures


def _check_masks(context: JobContext, config: RunConfig, pictures: Sequence[PictureFacts]) -> None:
    """Refuse masks that would lie beside their subject, and a masked loss without a mask. Raises DatasetError."""
    source = config.data.masks
    if source == "off":
        return
    wrong = [
        Finding(picture.name, problem.message)
        for picture in pictures
        for problem in picture.problems
        if problem.code in ("mask_shape", "mask_unreadable") and source != "alpha"
    ]
    if wrong:
        raise DatasetError(
            f"{len(wrong)} masks cannot be used.",
            where="data.masks",
            fix="Save each mask in the size of its picture, or turn data.masks off.",
            findings=wrong,
        )
    without = [picture.name for picture in pictures if mask_of(picture, source) is None]
    if len(without) == len(pictures):
        raise DatasetError(
            "The loss is to be masked, and no picture has a mask.",
            where="data.masks",
            fix="Save masks as NAME-masklabel.png beside the pictures (white is the subject), use pictures with transparent "
            "parts and data.masks alpha, or turn data.masks off.",
        )
    if without:
        context.emit(
            Warned(
                message=f"{len(without)} of {len(pictures)} pictures have no mask and are learned whole: {_list(without)}"
            )
        )


def check_empty_masks(context: JobContext, masks: MaskCache, wanted: Sequence[tuple[Example, Variant]]) -> None:
    """Warn of pictures of whose cut the mask leaves nothing."""
    empty = dict.fromkeys(example.name for example, variant in wanted if not bool(masks.get(example, variant).any()))
    if empty:
        context.emit(
            Warned(
                message=f"The masks of {len(empty)} pictures are black where they are cut (white is the subject), so that "
                f"little or nothing of them is learned: {_list(list(empty))}"
            )
        )


def _reason(picture: PictureFacts) -> str:
    return next(problem.message for problem in picture.problems if problem.is_error)


def _list(items: Sequence[str]) -> str:
    rest = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def check_sizes(context: JobContext, config: RunConfig, components: Components, examples: Sequence[Example]) -> None:
    """Refuse sizes that the model cannot work in; warn of those that it works in badly.

    Raises: ConfigError.
    """
    factor, multiple = components.vae_scale_factor, components.family.pixel_multiple(components)
    sizes = {(example.bucket.width, example.bucket.height) for example in examples}
    if any(side % factor for size in sizes for side in size):
        field = "data.bucket_step" if config.data.buckets else "data.resolution"
        raise ConfigError(
            f"'{components.name}' takes pictures whose sides are multiples of {factor}.",
            where=field,
            fix=f"Set {field} to a multiple of {factor}, best of {multiple}.",
        )
    ratio = config.data.resolution / components.resolution
    if not 0.5 <= ratio <= 2:
        context.emit(
            Warned(
                message=f"The resolution of {config.data.resolution} is far from the base model's own "
                f"({components.resolution}); what it learns there may not show at its own size."
            )
        )


def check_captions(context: JobContext, config: RunConfig, components: Components, examples: Sequence[Example]) -> None:
    """Warn of captions whose end the text encoders do not see, and of empty ones."""
    limit = config.data.max_caption_tokens
    lengths = [max(_num_tokens(config, components, text) for text in example.all_captions) for example in examples]
    cut = [example.name for example, length in zip(examples, lengths, strict=True) if length > limit]
    if cut:
        context.emit(
            Warned(
                message=f"Captions longer than {limit} tokens, of which the end is cut off ({len(cut)}): {_list(cut)}"
            )
        )
    empty = [example.name for example in examples if not example.caption]
    if empty:
        context.emit(
            Warned(
                message=f"Pictures without a caption ({len(empty)}); there is neither an instance prompt nor a trigger word, so "
                f"they are trained without words: {_list(empty)}"
            )
        )


def _num_tokens(config: RunConfig, components: Components, caption: str) -> int:
    """Tokens of a caption, in which a trigger word with vectors of its own takes a place for each."""
    count, word, own = count_tokens(components.tokenizer, caption), config.data.trigger_word, config.adapter.embedding
    if not own.num_vectors:
        return count
    longer = own.num_vectors - count_tokens(components.tokenizer, word)
    return count + caption.casefold().count(word.casefold()) * longer


def check_disk(context: JobContext, config: RunConfig, num_trained: int) -> None:
    """Raise ResourceError unless the checkpoints and LoRA files of the run fit on the disk."""
    # The weights, their average, and what the optimizer keeps, for each trained number.
    average = _BYTES if config.training.ema_decay else 0
    checkpoint = round(num_trained * (_BYTES + average + config.optimizer.facts.state_bytes))
    # Of two adapters each and the sum.
    files = len(config.adapter.alone) * checkpoint
    needed = (config.save.keep_checkpoints + 1) * checkpoint + files + _MARGIN_BYTES
    require_free(context.run.folder, needed, "the run's checkpoints and LoRA files")


def check_exports(context: JobContext, config: RunConfig, num_trained: int, total_steps: int) -> None:
    """Warn where the files that are to be saved along the way will not fit on the disk, each in the run and in the library."""
    every = config.save.export_every
    if not every:
        return
    left = (total_steps - 1) // every - len(list(context.run.lora.glob("*-step*.safetensors")))
    numbers = num_trained * DTYPES[config.save.precision].itemsize * len(config.adapter.alone)
    needed, free = 2 * left * numbers + _MARGIN_BYTES, free_bytes(context.run.folder)
    if left > 0 and free < needed:
        context.emit(
            Warned(
                message=f"The {left} LoRA files to be saved along the way need {size(needed)}, and {size(free)} are free: the "
                "later ones will be left out. Raise save.export_every, or make room."
            )
        )
