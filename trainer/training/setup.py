"""Everything before the first step: device, model, pictures, caches, adapter, optimizer."""

from __future__ import annotations

import os
from functools import partial
from typing import cast, get_args

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from trainer.adapters.choice import chosen_together
from trainer.adapters.method import AdapterMethod, build_method, num_kept
from trainer.base_models import resolve_trainable
from trainer.config.run import RunConfig
from trainer.data.batches import BatchMaker
from trainer.data.examples import at_all_resolutions, concept_examples, split_examples
from trainer.data.randomness import stream_seed
from trainer.data.showings import Showings
from trainer.data.texts import Texts
from trainer.data.variants import PLAIN
from trainer.errors import ConfigError, ModelFileError
from trainer.events import Warned
from trainer.jobs import JobContext
from trainer.models.components import Components, load_components
from trainer.models.devices import dtype_name, pick_device, pick_dtype
from trainer.models.neutral import skip_neutral_divisions
from trainer.objectives.diffusion import PredictionType, add_noise
from trainer.objects import load_object
from trainer.optimizers.average import WeightAverage
from trainer.paths import DataFolder
from trainer.training.base_prediction import start_of
from trainer.training.caches import (
    cache_latents,
    cache_masks,
    make_batches,
    make_class_batches,
    make_texts,
    variants_of,
)
from trainer.training.checkpoint import pack_optimizer
from trainer.training.class_images import class_data, class_examples
from trainer.training.data_record import record_datasets
from trainer.training.distributed import Ranks
from trainer.training.eva import begin_with, eva_starts, keep_starts, kept_starts, with_ranks
from trainer.training.freed import give_back_freed
from trainer.training.fused import FusedBackward
from trainer.training.identity import run_identity
from trainer.training.preflight import (
    check_captions,
    check_disk,
    check_optimizer,
    check_sizes,
    read_concepts,
    say_unused,
)
from trainer.training.state import NoiseSchedule, TrainParts
from trainer.training.step import can_skip
from trainer.training.storage import weight_storage
from trainer.training.underneath import merge_frozen, read_frozen, text_key

_ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def set_up(context: JobContext, config: RunConfig, data: DataFolder, ranks: Ranks | None = None) -> TrainParts:
    """Build a run's parts, in the order that finds the cheapest mistakes first; in each of its processes.

    Raises: DatasetError, ConfigError, ModelFileError, ResourceError: see the message; Cancelled.
    """
    ranks = ranks or Ranks()
    device = ranks.device(pick_device(config.training.device))
    check_optimizer(context, config, device)
    say_unused(context, config)
    dtype = pick_dtype(config.model.precision, device)
    storage = weight_storage(config, device)
    prepare_torch(config, device)
    dataset, concepts = ranks.main_first(partial(read_concepts, context, config, data))
    ranks.on_main(partial(record_datasets, context.run, config, data, concepts))
    context.stage("Loading the base model")
    resolve_trainable(config.model.base, data, has_vae=bool(config.model.vae))
    components = load_components(config.model, data, device, dtype, storage)
    chosen_together(components, config.adapter)  # refused before any time is spent
    frozen = read_frozen(config, data, components)
    for lora in frozen:
        if lora.unknown:
            context.emit(Warned(message=f"{len(lora.unknown)} layers of '{lora.name}' are not in the base model."))
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
    latents = cache_latents(context, data, components, wanted, ranks)
    masks = ranks.main_first(partial(cache_masks, context, config, data, components, wanted))
    merge_frozen(components, frozen)
    told = [*examples, *class_pictures]
    texts = ranks.main_first(partial(make_texts, context, config, data, components, told, text_key(frozen)))
    if device.type != "cpu":
        components.move_away("vae", *([] if texts.needs_encoder else components.text_encoders))
    showings = Showings(shown, balanced=config.data.balance == "concepts")
    # What the starts are found with must not depend on how many share the work.
    look = partial(make_batches, config, shown, latents, "instance", showings)
    starts = ranks.main_first(partial(_starts, context, config, components, noise_schedule, look(Ranks()), texts))
    adapter = build_method(with_ranks(config.adapter, starts), config.data.trigger_word)
    adapter.attach(components, stream_seed("adapter", config.training.seed))
    begin_with(adapter, starts)
    # Where cards differ, so may the last bits of what each computed as a start (PiSSA's SVD).
    if ranks.count > 1:
        adapter.load_state_dict(ranks.take_mains(adapter.state_dict()))
    for note in adapter.notes():
        context.emit(Warned(message=note))
    check_disk(context, config, num_kept(adapter))
    _set_modes(config, components)
    accelerator, optimizer = _accelerate(config, adapter, device, dtype)
    weights = [weight for group in adapter.parameter_groups().values() for weight in group]
    decay = config.training.ema_decay
    prior = config.data.prior
    give_back_freed()
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
        batches=look(ranks, masks),
        class_batches=make_class_batches(config, class_pictures, latents, ranks),
        texts=texts,
        latents=latents,
        name=config.save.name or dataset.title,
        dataset_name=dataset.name,
        # Generated class pictures follow from the settings; the user's own have a data set's name.
        identity=run_identity(
            config, components, [*examples, *(each for each in class_pictures if each.concept)], ranks.count
        )
        | {"on_top_of": [lora.identity() for lora in frozen]},
        frozen=frozen,
        average=WeightAverage(weights, decay) if decay else None,
        ranks=ranks,
        start=start_of(adapter) if prior.class_prompt and prior.source == "base_prediction" else None,
        fused=_fused(accelerator, optimizer, device) if config.training.fused_backward else None,
        fresh_optimizer=pack_optimizer(optimizer.optimizer),
    )


def _fused(accelerator: Accelerator, optimizer: AcceleratedOptimizer, device: torch.device) -> FusedBackward:
    if accelerator.scaler is not None:
        raise ConfigError(
            "The fused backward pass does not go together with fp16, whose gradients are scaled.",
            where="training.fused_backward",
            fix="Set it to false, or model.precision to bf16 or fp32.",
        )
    if accelerator.num_processes > 1:
        raise ConfigError(
            "The fused backward pass does not go together with several processes, which must add their gradients first.",
            where="training.fused_backward",
            fix="Set it to false.",
        )
    return FusedBackward(optimizer.optimizer, deferred=device.type == "cuda" and can_skip(optimizer.optimizer))


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


def _starts(
    context: JobContext,
    config: RunConfig,
    components: Components,
    schedule: NoiseSchedule,
    batches: BatchMaker,
    texts: Texts,
) -> dict[str, Tensor]:
    """Where EVA's layers start: found once for a run; empty for other starts."""
    seed, settings = config.training.seed, config.adapter
    if settings.init != "eva":
        return {}
    starts = kept_starts(context.run.folder, settings)
    if not starts:

        def look(number: int) -> None:
            context.check_stop()
            context.stage("Looking at what the layers are given (EVA)", number, settings.eva.batches)
            batch = batches.make(number, "eva", seed, number).to(components.device)
            noisy = add_noise(batch.latents, batch.input_noise, batch.timesteps, schedule.alphas_cumprod)
            conditioning = texts.encode(batch.captions).framed(batch.frames)
            components.family.predict(components, noisy, batch.timesteps, conditioning)

        starts = eva_starts(components, settings, look)
        keep_starts(context.run.folder, settings, starts)
    return starts


def _set_modes(config: RunConfig, components: Components) -> None:
    """Training mode where dropout and gradient checkpointing need it; nothing computed that changes nothing."""
    components.unet.train()
    skip_neutral_divisions(components.unet)
    trained = components.text_encoders.values() if config.adapter.trains_text else ()
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
