"""Everything before the first step: device, model, pictures, caches, adapter, optimizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import cast, get_args

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from trainer.adapters.method import AdapterMethod, build_method
from trainer.config.run import RunConfig
from trainer.data.batches import BatchMaker, BatchOrder
from trainer.data.captions import varies
from trainer.data.examples import Example, make_examples, split_examples
from trainer.data.latents import LatentCache
from trainer.data.randomness import stream_seed
from trainer.data.tensor_store import TensorStore
from trainer.data.texts import CachedTexts, LiveTexts, Texts
from trainer.errors import ModelFileError
from trainer.events import Warned
from trainer.jobs import JobContext
from trainer.models.components import Components, load_components
from trainer.models.devices import dtype_name, pick_device, pick_dtype
from trainer.models.text import CHUNK_TOKENS, PromptOptions
from trainer.objectives.diffusion import PredictionType
from trainer.objects import load_object
from trainer.optimizers.average import WeightAverage
from trainer.paths import DataFolder
from trainer.progress import StageProgress
from trainer.training.base_prediction import start_of
from trainer.training.class_images import class_examples
from trainer.training.identity import run_identity
from trainer.training.preflight import (
    check_captions,
    check_disk,
    check_optimizer,
    check_sizes,
    read_pictures,
)
from trainer.training.state import NoiseSchedule, TrainParts

log = logging.getLogger(__name__)
_ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def set_up(context: JobContext, config: RunConfig, data: DataFolder) -> TrainParts:
    """Build a run's parts, in the order that finds the cheapest mistakes first.

    Raises: DatasetError, ConfigError, ModelFileError, ResourceError: see the message; Cancelled.
    """
    device = pick_device(config.training.device)
    check_optimizer(context, config, device)
    dtype = pick_dtype(config.model.precision, device)
    prepare_torch(config, device)
    dataset, pictures = read_pictures(context, config, data)
    context.stage("Loading the base model")
    components = load_components(config.model, data, device, dtype)
    noise_schedule = _noise_schedule(components)
    examples = make_examples(pictures, config.data, config.data.trigger_word)
    check_sizes(context, config, components, examples)
    check_captions(context, config, components, examples)
    split = split_examples(examples, config.data.validation_share, config.validation.num_pictures, config.training.seed)
    context.check_stop()
    class_pictures = class_examples(context, config, data, components)
    latents = _cache_latents(context, config, data, components, [*examples, *class_pictures])
    texts = _make_texts(context, config, data, components, [*examples, *class_pictures])
    if device.type != "cpu":
        components.move_away("vae", *([] if texts.needs_encoder else components.text_encoders))
    adapter = build_method(config.adapter)
    adapter.attach(components, stream_seed("adapter", config.training.seed))
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
        batches=_batches(config, split.training, latents, "instance", config.data.repeats),
        class_batches=_batches(config, class_pictures, latents, "class", 1) if class_pictures else None,
        texts=texts,
        latents=latents,
        name=config.save.name or dataset.title,
        dataset_name=dataset.name,
        identity=run_identity(config, components, examples),
        average=WeightAverage(weights, decay) if decay else None,
        start=start_of(adapter) if prior.class_prompt and prior.source == "base_prediction" else None,
    )


def prepare_torch(config: RunConfig, device: torch.device) -> None:
    """Set what holds for the whole process: threads, and whether the same bits are to come out each time."""
    if config.training.num_threads:
        torch.set_num_threads(config.training.num_threads)
    # cuBLAS and cuDNN choose among kernels that add in another order each time, unless told not to.
    is_exact = config.training.deterministic
    torch.use_deterministic_algorithms(is_exact, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = not is_exact
    if device.type == "cuda":
        if is_exact:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
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


def _cache_latents(
    context: JobContext, config: RunConfig, data: DataFolder, components: Components, examples: Sequence[Example]
) -> LatentCache:
    store = TensorStore(data.cache / "latents")
    latents = LatentCache(store, components, components.fingerprint("vae"))
    progress = partial(StageProgress(context), "Caching latents")
    computed = latents.prepare(examples, with_flipped=config.data.horizontal_flip, progress=progress)
    log.info("%d latents were computed, the others were cached", computed)
    return latents


def _make_texts(
    context: JobContext, config: RunConfig, data: DataFolder, components: Components, examples: Sequence[Example]
) -> Texts:
    options = PromptOptions(config.model.clip_skip, config.data.max_caption_tokens // CHUNK_TOKENS)
    if config.adapter.text_encoder.rank or varies(config.data):
        return LiveTexts(components, options)
    store = TensorStore(data.cache / "texts")
    name = "".join(components.fingerprint(part) for part in components.text_encoders)
    texts = CachedTexts(store, components, name + fingerprint_tokenizers(components), options)
    captions = [config.data.prior.class_prompt, *(example.caption for example in examples)]
    texts.prepare(captions, partial(StageProgress(context), "Caching captions"))
    return texts


def fingerprint_tokenizers(components: Components) -> str:
    """A key that changes with how text is cut into tokens and filled up."""
    return "".join(
        str(stream_seed(str(sorted(tokenizer.get_vocab().items())), str(tokenizer.pad_token_id)))
        for tokenizer in components.tokenizers.values()
    )


def _batches(
    config: RunConfig, examples: Sequence[Example], latents: LatentCache, stream: str, repeats: int
) -> BatchMaker:
    buckets = [example.bucket for example in examples]
    order = BatchOrder(buckets, config.training.batch_size, repeats, stream, config.training.seed)
    return BatchMaker(examples, order, latents, config.data, config.objective)


def _set_modes(config: RunConfig, components: Components) -> None:
    """Training mode where dropout and gradient checkpointing need it."""
    components.unet.train()
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
    # accelerate keeps its precision for the process; another run in the same process may want another.
    AcceleratorState._reset_state(reset_partial_state=True)
    precision = _ACCELERATE_PRECISION[dtype_name(dtype)]
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=precision)
    optimizer = load_object(config.optimizer.implementation)(config.optimizer, adapter.parameter_groups())
    prepared = accelerator.prepare_optimizer(optimizer, device_placement=False)
    return accelerator, cast(AcceleratedOptimizer, prepared)
