"""What is checked before time is spent: pictures, sizes, disk. What can go on with a note gives one, what cannot raises."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence

import torch

from trainer.config.optimizer import missing_part
from trainer.config.run import RunConfig
from trainer.data.examples import Example
from trainer.dataset.catalog import DatasetCatalog, DatasetInfo
from trainer.dataset.scan import PictureFacts, preflight
from trainer.errors import ConfigError
from trainer.events import Warned
from trainer.files import require_free
from trainer.jobs import JobContext
from trainer.models.components import Components
from trainer.models.text import count_tokens
from trainer.paths import DataFolder

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
    if facts.finds_rate and config.adapter.unet.rank and config.adapter.trains_text:
        context.emit(
            Warned(
                message=f"{facts.title} finds one learning rate for UNet and text encoder; the rates that are set only say what is trained."
            )
        )


def read_pictures(
    context: JobContext, config: RunConfig, data: DataFolder
) -> tuple[DatasetInfo, tuple[PictureFacts, ...]]:
    """The data set and its usable pictures; a warning names those that are passed over.

    Raises: DatasetError: there is no such data set, or it has no usable picture. Cancelled.
    """
    catalog = DatasetCatalog(data)
    info = catalog.get(config.data.dataset)

    def progress(done: int, total: int) -> None:
        context.check_stop()
        context.stage("Checking pictures", done, total)

    scan = catalog.scan(config.data.dataset, progress=progress)
    pictures = scan.require_usable()
    bad = [picture for picture in scan.pictures if not picture.is_usable]
    if bad:
        reasons = [f"{picture.name} ({_reason(picture)})" for picture in bad]
        context.emit(Warned(message=f"{len(bad)} of {len(scan.pictures)} pictures cannot be used: {_list(reasons)}"))
    notes = preflight(pictures, config.data.resolution, config.data.max_aspect_ratio if config.data.buckets else 1.0)
    if notes:
        context.emit(Warned(message=f"{len(notes)} notes on pictures: {_list([str(note) for note in notes])}"))
    return info, pictures


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
    lengths = [count_tokens(components.tokenizer, example.caption) for example in examples]
    cut = [example.name for example, length in zip(examples, lengths, strict=True) if length > limit]
    if cut:
        context.emit(
            Warned(
                message=f"The captions of {len(cut)} pictures are longer than {limit} tokens and are cut: {_list(cut)}"
            )
        )
    empty = [example.name for example in examples if not example.caption]
    if empty:
        context.emit(
            Warned(
                message=f"{len(empty)} pictures have no caption, and there is neither an instance prompt nor a trigger word: "
                f"they are trained without words: {_list(empty)}"
            )
        )


def check_disk(context: JobContext, config: RunConfig, num_trained: int) -> None:
    """Raise ResourceError unless the checkpoints and LoRA files of the run fit on the disk."""
    # The weights, their average, and what the optimizer keeps, for each trained number.
    average = _BYTES if config.training.ema_decay else 0
    size = round(num_trained * (_BYTES + average + config.optimizer.facts.state_bytes))
    needed = (config.save.keep_checkpoints + 1) * size + size + _MARGIN_BYTES
    require_free(context.run.folder, needed, "the run's checkpoints and LoRA files")
