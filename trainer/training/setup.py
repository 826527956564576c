"""Everything before the first step: device, model, pictures, caches, adapter, optimizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import cast, get_args

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from trainer.adapters.method import AdapterMethod, build_method
from trainer.config.data import DataConfig
from trainer.config.run import RunConfig
from trainer.data.batches import BatchMaker, BatchOrder
from trainer.data.examples import Example, at_all_resolutions, concept_examples, split_examples
from trainer.data.latents import LatentCache
from trainer.data.masks import MaskCache
from trainer.data.randomness import stream_seed
from trainer.data.showings import Showings
from trainer.data.tensor_store import TensorStore
from trainer.data.texts import CachedTexts, LiveTexts, Texts
from trainer.data.variants import PLAIN, Variant, Variants
from trainer.errors import ModelFileError
from trainer.events import Warned
from trainer.jobs import JobContext
from trainer.models.components import Components, load_components
from trainer.models.devices import dtype_name, pick_device, pick_dtype
from trainer.models.neutral import skip_neutral_divisions
from trainer.models.text import CHUNK_TOKENS, PromptOptions
from trainer.objectives.diffusion import PredictionType
from trainer.objects import load_object
from trainer.optimizers.average import WeightAverage
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.training.base_prediction import start_of
from trainer.training.class_images import class_data, class_examples
from trainer.training.data_record import record_datasets
from trainer.training.distributed import Ranks
from trainer.training.identity import run_identity
from trainer.training.preflight import (
    check_captions,
    check_disk,
    check_empty_masks,
    check_optimizer,
    check_sizes,
    read_concepts,
)
from trainer.training.state import NoiseSchedule, TrainParts
from trainer.training.storage import keeps_text_encoders, weight_storage

log = logging.getLogger(__name__)
_ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def set_up(context: JobContext, config: RunConfig, data: DataFolder, ranks: Ranks | None = None) -> TrainParts:
    """Build a run's parts, in the order that finds the cheapest mistakes first; in each of its processes.

    Raises: DatasetError, ConfigError, ModelFileError, ResourceError: see the message; Cancelled.
    """
    ranks = ranks or Ranks()
    device = ranks.device(pick_device(config.training.device))
    check_optimizer(context, config, device)
    dtype = pick_dtype(config.model.precision, device)
    storage = weight_storage(config, device)
    _prepare_torch(config, device)
    dataset, concepts = ranks.main_first(partial(read_concepts, context, config, data))
    ranks.on_main(partial(record_datasets, context.run, config, data, concepts))
    context.stage("Loading the base model")
    components = load_components(config.model, data, device, dtype, storage)
    noise_schedule = _noise_schedule(components)
    examples = [example for concept in concepts for example in concept_examples(concept, config.data)]
    check_sizes(context, config, components, at_all_resolutions(examples, config.data))
    check_captions(context, config, components, examples)
    split = split_examples(examples, config.data.validation_share, config.validation.num_pictures, config.training.seed)
    context.check_stop()
    class_pictures = ranks.main_first(partial(class_examples, context, config, data, components))
    shown = at_all_resolutions(split.training, config.data)
    wanted = [
        *variants_of(config.data, config.training.seed, shown),
        *variants_of(class_data(config.data), config.training.seed, class_pictures),
        *((example, PLAIN) for example in split.validation),
    ]
    latents = _cache_latents(context, data, components, wanted, ranks)
    masks = ranks.main_first(partial(_cache_masks, context, config, data, components, wanted))
    texts = ranks.main_first(partial(_make_texts, context, config, data, components, [*examples, *class_pictures]))
    if device.type != "cpu":
        components.move_away("vae", *([] if texts.needs_encoder else components.text_encoders))
    adapter = build_method(config.adapter, config.data.trigger_word)
    adapter.attach(components, stream_seed("adapter", config.training.seed))
    # Where cards differ, so may the last bits of what each computed as a start (PiSSA's SVD).
    if ranks.count > 1:
        adapter.load_state_dict(ranks.take_mains(adapter.state_dict()))
    for note in adapter.notes():
        context.emit(Warned(message=note))
    check_disk(context, config, sum(weight.numel() for weight in adapter.state_dict().values()))
    _set_modes(config, components)
    accelerator, optimizer = _accelerate(config, adapter, device, dtype)
    weights = [weight for group in adapter.parameter_groups().values() for weight in group]
    decay = config.training.ema_decay
    prior = config.data.prior
    return TrainParts(
        context=context,
        config=config,
        data=data,
        components=components,
        adapter=adapter,
        accelerator=accelerator,
        optimizer=optimizer,
        noise_schedule=noise_schedule,
        split=split,
        batches=_batches(
            config,
            shown,
            latents,
            "instance",
            Showings(shown, balanced=config.data.balance == "concepts"),
            ranks,
            masks,
        ),
        class_batches=_class_batches(config, class_pictures, latents, ranks),
        texts=texts,
        latents=latents,
        name=config.save.name or dataset.title,
        dataset_name=dataset.name,
        # Generated class pictures follow from the settings; the user's own have a data set's name.
        identity=run_identity(
            config, components, [*examples, *(each for each in class_pictures if each.concept)], ranks.count
        ),
        average=WeightAverage(weights, decay) if decay else None,
        ranks=ranks,
        start=start_of(adapter) if prior.class_prompt and prior.source == "base_prediction" else None,
    )


def _prepare_torch(config: RunConfig, device: torch.device) -> None:
    if config.training.num_threads:
        torch.set_num_threads(config.training.num_threads)
    if device.type == "cuda":
        # cuBLAS and cuDNN choose among kernels that add in another order each time, unless told not to.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        torch.cuda.reset_peak_memory_stats(device)


def _noise_schedule(components: Components) -> NoiseSchedule:
    scheduler = DDPMScheduler.from_config(components.scheduler_config)
    prediction_type = str(scheduler.config["prediction_type"])
    if prediction_type not in get_args(PredictionType):
        raise ModelFileError(
            f"The base model predicts '{prediction_type}', which cannot be trained.",
            where=str(components.path),
            fix="Choose another base model, or set model.prediction_type if you know better.",
        )
    return NoiseSchedule(
        scheduler.alphas_cumprod.to(components.device, torch.float32), cast(PredictionType, prediction_type)
    )


def variants_of(data: DataConfig, seed: int, examples: Sequence[Example]) -> list[tuple[Example, Variant]]:
    """Every variant of every picture that can be drawn in training."""
    variants = Variants(data, seed)
    return [(example, variant) for example in examples for variant in variants.of(example)]


def _cache_latents(
    context: JobContext,
    data: DataFolder,
    components: Components,
    wanted: Sequence[tuple[Example, Variant]],
    ranks: Ranks,
) -> LatentCache:
    store = TensorStore(data.cache / "latents")
    latents = LatentCache(store, components, components.fingerprint("vae"))
    progress = partial(StageProgress(context), "Caching latents")
    # Each device makes its share, and then finds those of the others.
    computed = latents.prepare(wanted[ranks.index :: ranks.count], progress)
    if ranks.count > 1:
        ranks.meet()
        latents.prepare(wanted, progress)
    log.info("%d latents were computed, the others were cached", computed)
    return latents


def _cache_masks(
    context: JobContext,
    config: RunConfig,
    data: DataFolder,
    components: Components,
    wanted: Sequence[tuple[Example, Variant]],
) -> MaskCache | None:
    if config.data.masks == "off":
        return None
    masks = MaskCache(TensorStore(data.cache / "masks"), components.vae_scale_factor)
    masks.prepare(wanted, partial(StageProgress(context), "Cutting masks"))
    check_empty_masks(context, masks, wanted)
    return masks


def _make_texts(
    context: JobContext, config: RunConfig, data: DataFolder, components: Components, examples: Sequence[Example]
) -> Texts:
    options = PromptOptions(config.model.clip_skip, config.data.max_caption_tokens // CHUNK_TOKENS)
    if keeps_text_encoders(config):
        return LiveTexts(components, options)
    store = TensorStore(data.cache / "texts")
    name = "".join(components.fingerprint(part) for part in components.text_encoders)
    texts = CachedTexts(store, components, name + fingerprint_tokenizers(components), options)
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


def _batches(
    config: RunConfig,
    examples: Sequence[Example],
    latents: LatentCache,
    stream: str,
    shown: int | Showings,
    ranks: Ranks,
    masks: MaskCache | None = None,
) -> BatchMaker:
    seed, buckets = config.training.seed, [example.bucket for example in examples]
    order = BatchOrder(buckets, config.training.global_batch_size, shown, stream, seed)
    part = (ranks.index, ranks.count)
    return BatchMaker(examples, order, latents, config.data, config.objective, seed=seed, masks=masks, part=part)


def _class_batches(
    config: RunConfig, examples: Sequence[Example], latents: LatentCache, ranks: Ranks
) -> BatchMaker | None:
    if not examples:
        return None
    own = config.model_copy(update={"data": class_data(config.data)})
    return _batches(own, examples, latents, "class", 1, ranks)


def _set_modes(config: RunConfig, components: Components) -> None:
    """Training mode where dropout and gradient checkpointing need it; nothing computed that changes nothing."""
    components.unet.train()
    skip_neutral_divisions(components.unet)
    trained = components.text_encoders.values() if config.adapter.text_encoder.rank else ()
    for encoder in trained:
        encoder.train()
    if config.training.gradient_checkpointing:
        components.unet.enable_gradient_checkpointing()
        for encoder in trained:
            encoder.gradient_checkpointing_enable({"use_reentrant": False})


def _accelerate(
    config: RunConfig, adapter: AdapterMethod, device: torch.device, dtype: torch.dtype
) -> tuple[Accelerator, AcceleratedOptimizer]:
    # accelerate keeps its precision for the process; another run in the same process may want another. What several
    # processes have in common stays: it is how they reach each other.
    AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
    precision = _ACCELERATE_PRECISION[dtype_name(dtype)]
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    optimizer = load_object(config.optimizer.implementation)(config.optimizer, adapter.parameter_groups())
    prepared = accelerator.prepare_optimizer(optimizer, device_placement=False)
    return accelerator, cast(AcceleratedOptimizer, prepared)
