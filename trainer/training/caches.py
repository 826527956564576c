"""What is computed once and kept: latents, masks and encoded captions; and the batches that are made of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from trainer.config.data import DataConfig
from trainer.config.run import RunConfig
from trainer.data.batches import BatchMaker, BatchOrder
from trainer.data.examples import Example
from trainer.data.latents import LatentCache, Progress
from trainer.data.masks import MaskCache
from trainer.data.randomness import stream_seed
from trainer.data.showings import Showings
from trainer.data.tensor_store import TensorStore
from trainer.data.texts import CachedTexts, LiveTexts, Texts
from trainer.data.variants import Variant, Variants
from trainer.jobs import JobContext
from trainer.models.components import Components
from trainer.models.text import CHUNK_TOKENS, PromptOptions
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.training.class_images import class_data
from trainer.training.distributed import Ranks
from trainer.training.preflight import check_empty_masks
from trainer.training.storage import keeps_text_encoders

log = logging.getLogger(__name__)
_TOGETHER = 8
"""Latents that each device makes before all meet."""


def variants_of(data: DataConfig, seed: int, examples: Sequence[Example]) -> list[tuple[Example, Variant]]:
    """Every variant of every picture that can be drawn in training."""
    variants = Variants(data, seed)
    return [(example, variant) for example in examples for variant in variants.of(example)]


def cache_latents(
    context: JobContext,
    data: DataFolder,
    components: Components,
    wanted: Sequence[tuple[Example, Variant]],
    ranks: Ranks,
) -> LatentCache:
    """The latents of all pictures in all variants that are wanted; each process computes a share of those that are missing."""
    store = TensorStore(data.cache / "latents")
    latents = LatentCache(store, components, components.fingerprint("vae"))
    report = partial(StageProgress(context), "Caching latents")
    # What is wanted twice, as a picture that is both learned and compared, is in one share only: else two make it.
    once = list(latents.distinct(wanted).values())
    # Each device makes its share, and then finds those of the others.
    share = once[ranks.index :: ranks.count]
    computed = latents.prepare(share, partial(_report_and_meet, report, ranks, len(once) // ranks.count))
    if ranks.count > 1:
        ranks.meet()
        latents.prepare(once, report)
    log.info("%d latents were computed, the others were cached", computed)
    return latents


def _report_and_meet(report: Progress, ranks: Ranks, shortest: int, done: int, total: int) -> None:
    """Progress of a share, where one who stops or fails is heard by the others after a few pictures, not after their shares.

    Args:
        shortest: pictures in the shortest share: all must meet as often.
    """
    report(done, total)
    if 0 < done < shortest and done % _TOGETHER == 0:
        ranks.meet()


def cache_masks(
    context: JobContext,
    config: RunConfig,
    data: DataFolder,
    components: Components,
    wanted: Sequence[tuple[Example, Variant]],
) -> MaskCache | None:
    """The masks of all pictures in all variants that are wanted, of the latents' size; None where the settings want none."""
    if config.data.masks == "off":
        return None
    masks = MaskCache(TensorStore(data.cache / "masks"), components.vae_scale_factor)
    masks.prepare(wanted, partial(StageProgress(context), "Cutting masks"))
    check_empty_masks(context, masks, wanted)
    return masks


def make_texts(
    context: JobContext,
    config: RunConfig,
    data: DataFolder,
    components: Components,
    examples: Sequence[Example],
    changes: str,
) -> Texts:
    """What encodes captions: from a cache, for which the text encoders are needed no more, or live where those are trained or captions vary.

    Args:
        examples: whose captions and class prompts can come up.
        changes: what encoded captions follow from beside the text encoders, such as LoRAs merged into them.
    """
    options = PromptOptions(config.model.clip_skip, config.data.max_caption_tokens // CHUNK_TOKENS)
    if keeps_text_encoders(config):
        return LiveTexts(components, options)
    store = TensorStore(data.cache / "texts")
    name = "".join(components.fingerprint(part) for part in components.text_encoders)
    texts = CachedTexts(store, components, name + fingerprint_tokenizers(components) + changes, options)
    prompts = [config.data.prior.class_prompt, *(example.class_prompt for example in examples)]
    captions = [text for example in examples for text in example.all_captions]
    texts.prepare([*prompts, *captions], partial(StageProgress(context), "Caching captions"))
    return texts


def fingerprint_tokenizers(components: Components) -> str:
    """A key that changes with how text is cut into tokens and filled up."""
    return "".join(
        str(stream_seed(str(sorted(tokenizer.get_vocab().items())), str(tokenizer.pad_token_id)))
        for tokenizer in components.tokenizers.values()
    )


def make_batches(
    config: RunConfig,
    examples: Sequence[Example],
    latents: LatentCache,
    stream: str,
    shown: int | Showings,
    ranks: Ranks,
    masks: MaskCache | None = None,
) -> BatchMaker:
    """The batches of these pictures.

    Args:
        stream: what their order is drawn by.
        shown: how often each picture is shown in an epoch.
        ranks: the processes that share each batch.
    """
    seed, buckets = config.training.seed, [example.bucket for example in examples]
    order = BatchOrder(buckets, config.training.global_batch_size, shown, stream, seed)
    part = (ranks.index, ranks.count)
    return BatchMaker(examples, order, latents, config.data, config.objective, seed=seed, masks=masks, part=part)


def make_class_batches(
    config: RunConfig, examples: Sequence[Example], latents: LatentCache, ranks: Ranks
) -> BatchMaker | None:
    """The batches of class pictures; None where there are none."""
    if not examples:
        return None
    own = config.model_copy(update={"data": class_data(config.data)})
    return make_batches(own, examples, latents, "class", 1, ranks)
