"""What an exported LoRA says of itself: kohya's `ss_*`, Stability's `modelspec.*`, and our own complete recipe.

The hashes of the data are added by `trainer.lora_files.file.write_lora`, which alone knows the bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PureWindowsPath
from typing import Any

from trainer import __version__
from trainer.base_models.families import FAMILY_FACTS
from trainer.config.adapter import METHODS, PLAIN, AdapterConfig
from trainer.config.blocks import choose_layer, layer_rate, parse_rule, part_lora
from trainer.config.migrate import migrate
from trainer.config.objective import ObjectiveConfig
from trainer.config.run import RunConfig
from trainer.errors import LoraFileError

CONFIG_KEY = "inkwash.config"
VERSION_KEY = "inkwash.version"
EMBEDDING_KEY = "inkwash.embedding"
"""The word with vectors of its own that was trained."""
DATASETS_KEY = "inkwash.datasets"
"""For each data set that it was trained on, the hash of its exact state (`trainer.dataset.versions`)."""
_MAX_TAGS = 20


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of a training besides its settings.

    Attributes:
        name: the LoRA's name.
        base_name: the base model's name.
        base_sha256: SHA-256 of its UNet's weights, or empty.
        width, height: the size it was trained at, in pixels.
        tag_frequency: for each data set, how often each caption part stands in it.
        datasets: for each data set, the repeats of its pictures and how many there are.
        dataset_hashes: for each data set, the hash of its exact state.
        started_at, finished_at: seconds since the epoch.
        trigger_word: the trigger word as it was used in training.
        family: a key of `trainer.base_models.FAMILY_FACTS`.
        prediction_type: "epsilon" or "v_prediction", as the base model was trained.
        zero_terminal_snr: whether its last timestep is pure noise.
    """

    name: str
    base_name: str
    steps: int
    epochs: int
    num_train_images: int
    width: int
    height: int
    started_at: float
    finished_at: float
    trigger_word: str = ""
    base_sha256: str = ""
    family: str = "sd1"
    prediction_type: str = "epsilon"
    zero_terminal_snr: bool = False
    tag_frequency: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    datasets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    dataset_hashes: Mapping[str, str] = field(default_factory=dict)


def build_metadata(config: RunConfig, facts: TrainingFacts, settings: RunConfig | None = None) -> dict[str, str]:
    """All metadata of an exported LoRA, as texts. Nothing in them tells where on the disk something lay.

    Args:
        config: what describes the file.
        settings: the run's, where `config` is about one of its adapters: what "train again" takes.
    """
    own = _own_entries(settings or config)
    entries = {**_kohya_entries(config, facts), **_modelspec_entries(config, facts), **own}
    if facts.dataset_hashes:
        hashes = {_last_part(name): digest for name, digest in facts.dataset_hashes.items()}
        entries[DATASETS_KEY] = json.dumps(hashes, ensure_ascii=False)
    return entries


def embedding_metadata(config: RunConfig, facts: TrainingFacts) -> dict[str, str]:
    """The metadata of the embedding alone, without what is said of layers."""
    entries = build_metadata(config, facts)
    architecture = entries["modelspec.architecture"].removesuffix("/lora")
    return {key: value for key, value in entries.items() if not key.startswith("ss_network_")} | {
        "modelspec.architecture": f"{architecture}/textual-inversion",
        "modelspec.title": facts.trigger_word,
        "modelspec.description": config.note or f"Embedding for {facts.base_name}, trained with Inkwash.",
    }


def _kohya_entries(config: RunConfig, facts: TrainingFacts) -> dict[str, str]:
    unet, text_encoder = config.adapter.unet, config.adapter.text_encoder
    main = next((part for part in (unet, text_encoder) if part.rank), config.adapter.second_text_encoder)
    values: dict[str, Any] = {
        "ss_base_model_version": FAMILY_FACTS[facts.family].kohya_base_version(facts.prediction_type),
        "ss_v2": facts.family == "sd2",
        "ss_network_module": network_module(config.adapter),
        "ss_network_dim": main.rank,
        "ss_network_alpha": main.alpha,
        "ss_network_args": network_arguments(config.adapter, facts.family),
        "ss_network_dropout": config.adapter.dropout,
        "ss_output_name": facts.name,
        "ss_sd_model_name": facts.base_name,
        "ss_tag_frequency": facts.tag_frequency,
        "ss_dataset_dirs": {
            name: {"n_repeats": repeats, "img_count": count} for name, (repeats, count) in facts.datasets.items()
        },
        "ss_resolution": f"({facts.width}, {facts.height})",
        "ss_enable_bucket": config.data.buckets,
        "ss_clip_skip": config.model.clip_skip,
        "ss_training_started_at": f"{facts.started_at:.3f}",
        "ss_training_finished_at": f"{facts.finished_at:.3f}",
        "ss_epoch": facts.epochs,
        "ss_num_epochs": facts.epochs,
        "ss_steps": facts.steps,
        "ss_max_train_steps": config.training.steps,
        "ss_num_train_images": facts.num_train_images,
        "ss_total_batch_size": config.training.global_batch_size,
        "ss_gradient_accumulation_steps": config.training.gradient_accumulation,
        "ss_learning_rate": config.optimizer.unet_learning_rate,
        "ss_unet_lr": config.optimizer.unet_learning_rate if unet.rank else 0.0,
        "ss_text_encoder_lr": _text_encoder_rates(config, facts.family),
        "ss_optimizer": config.optimizer.name,
        "ss_lr_scheduler": config.schedule.kind,
        "ss_seed": config.training.seed,
        "ss_mixed_precision": config.model.precision,
        "ss_zero_terminal_snr": facts.zero_terminal_snr,
        **_objective_entries(config.objective),
        "ss_prior_loss_weight": config.data.prior.weight if config.data.prior.class_prompt else None,
        "ss_max_grad_norm": config.training.max_grad_norm,
        "ss_gradient_checkpointing": config.training.gradient_checkpointing,
        "ss_lr_warmup_steps": round(config.schedule.warmup_share * config.training.steps),
        "ss_max_token_length": config.data.max_caption_tokens,
        "ss_flip_aug": config.data.horizontal_flip,
        "ss_caption_dropout_rate": config.data.caption_dropout,
        "ss_caption_tag_dropout_rate": config.data.tag_dropout,
        "ss_shuffle_caption": config.data.shuffle_tags,
        "ss_keep_tokens": config.data.keep_tags,
        "ss_training_comment": config.note,
    }
    if config.adapter.max_norm:
        values["ss_scale_weight_norms"] = config.adapter.max_norm
    if facts.base_sha256:
        values["ss_new_sd_model_hash"] = facts.base_sha256
    return {key: _text(value) for key, value in values.items()}


def network_module(adapter: AdapterConfig) -> str:
    """kohya's own network for what is a plain LoRA, LyCORIS' for the rest."""
    is_plain = adapter.method in (*PLAIN, "adalora")
    return "networks.lora" if is_plain and adapter.method != "rslora" else "lycoris.kohya"


def _text_encoder_rates(config: RunConfig, family: str) -> Any:
    """The text encoder's learning rate; of a family with two a list, as kohya writes it, where they differ."""
    parts = {name: part_lora(config.adapter, name) for name in FAMILY_FACTS[family].text_encoders}
    rates = [config.optimizer.learning_rate(name) if part.rank else 0.0 for name, part in parts.items()]
    return rates if len(set(rates)) > 1 else rates[0]


def _objective_entries(objective: ObjectiveConfig) -> dict[str, Any]:
    """The objective in kohya's words; None where a setting is off or has no effect, as kohya writes it."""
    is_robust, has_pyramid = objective.loss != "l2", objective.pyramid_noise_levels > 0
    is_capped = objective.weighting == "min_snr" and objective.min_snr_gamma > 0
    return {
        "ss_noise_offset": objective.noise_offset,
        "ss_multires_noise_iterations": objective.pyramid_noise_levels or None,
        "ss_multires_noise_discount": objective.pyramid_noise_discount if has_pyramid else None,
        "ss_ip_noise_gamma": objective.input_perturbation or None,
        "ss_min_snr_gamma": objective.min_snr_gamma if is_capped else None,
        "ss_debiased_estimation": objective.weighting == "debiased",
        "ss_loss_type": objective.loss,
        "ss_huber_c": objective.huber_delta if is_robust else None,
        "ss_huber_schedule": objective.huber_schedule if is_robust else None,
        "ss_min_timestep": objective.min_timestep,
        "ss_max_timestep": objective.max_timestep,
    }


def network_arguments(adapter: AdapterConfig, family: str = "sd1") -> dict[str, Any]:
    """The network's settings in the words of kohya and LyCORIS (`algo`, `conv_dim`, `dora_wd`, `block_dims`, …)."""
    unet = adapter.unet
    arguments: dict[str, Any] = {"algo": METHODS[adapter.method].algorithm}
    if unet.rank and unet.targets == "all+conv":
        conv = choose_layer(adapter.model_copy(update={"blocks": [], "block_rates": ""}), "unet.conv", (1, 1, 3, 3))
        arguments |= {"conv_dim": conv.rank, "conv_alpha": conv.alpha} if conv.rank else {}
    arguments |= block_arguments(adapter, family)
    match adapter.method:
        case "rslora":
            arguments["rs_lora"] = True
        case "loraplus":
            arguments["loraplus_lr_ratio"] = adapter.loraplus.ratio
        case "dora":
            arguments |= {"dora_wd": True, "wd_on_output": adapter.dora.axis == "output"}
        case "lokr":
            arguments["factor"] = adapter.lokr.factor
        case "oft" | "boft":
            arguments["constraint"] = adapter.oft.constraint
    for name in ("rank_dropout", "module_dropout"):
        if getattr(adapter, name):
            arguments[name] = getattr(adapter, name)
    return arguments


_WHOLE_BLOCKS = re.compile(
    r"\*|(unet\.)?((down|up)_blocks(\.[\d*])?|mid_block)|IN\d\d|OUT\d\d|M00|MID|BASE", re.IGNORECASE
)


def block_arguments(adapter: AdapterConfig, family: str) -> dict[str, str]:
    """Ranks, alphas and rates of blocks as kohya's trainer takes them: 25 numbers from the UNet's input to its output.

    Empty where there are none, for SDXL (whose blocks it counts otherwise), and where lines name less than a block.
    """
    rules = [parse_rule(line) for line in adapter.blocks]
    in_unet = [rule for rule in rules if not rule.name.startswith("text_encoder")]
    if family == "sdxl" or not adapter.unet.rank or not (in_unet or adapter.block_rates):
        return {}
    if not all(_WHOLE_BLOCKS.fullmatch(rule.name) for rule in in_unet):
        return {}
    ways = {
        "down": [f"unet.down_blocks.{level}.{place}.x" for level in range(4) for place in _DOWN],
        "mid": ["unet.mid_block.attentions.0.x"],
        "up": [f"unet.up_blocks.{level}.attentions.{index}.x" for level in range(4) for index in range(3)],
    }
    # kohya's first block is conv_in, which is never trained; the last level's sampler is not there.
    ways["down"] = ["unet.conv_in", *ways["down"][:-1]]
    arguments: dict[str, str] = {}
    if any(rule.rank is not None or rule.alpha is not None for rule in in_unet):
        choices = [choose_layer(adapter, path, (1, 1)) for paths in ways.values() for path in paths]
        arguments["block_dims"] = ",".join(str(choice.rank) for choice in choices)
        arguments["block_alphas"] = ",".join(f"{choice.alpha:g}" for choice in choices)
    if adapter.block_rates or any(rule.rate is not None for rule in in_unet):
        for way, paths in ways.items():
            arguments[f"{way}_lr_weight"] = ",".join(f"{layer_rate(adapter, path):g}" for path in paths)
    return arguments


_DOWN = ("attentions.0", "attentions.1", "downsamplers.0")


def _modelspec_entries(config: RunConfig, facts: TrainingFacts) -> dict[str, str]:
    date = datetime.fromtimestamp(facts.finished_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    entries = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{FAMILY_FACTS[facts.family].architecture[facts.prediction_type]}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.implementation_version": f"inkwash {__version__}",
        "modelspec.title": facts.name,
        "modelspec.resolution": f"{facts.width}x{facts.height}",
        "modelspec.description": config.note or f"LoRA for {facts.base_name}, trained with Inkwash.",
        "modelspec.author": "unknown",
        "modelspec.date": date,
        "modelspec.prediction_type": "v" if facts.prediction_type == "v_prediction" else facts.prediction_type,
        "modelspec.encoder_layer": str(config.model.clip_skip),
        "modelspec.timestep_range": f"{config.objective.min_timestep},{config.objective.max_timestep}",
    }
    if facts.trigger_word:
        entries["modelspec.trigger_phrase"] = facts.trigger_word
        entries["modelspec.usage_hint"] = f"Write '{facts.trigger_word}' in the prompt."
    tags = _commonest_tags(facts.tag_frequency)
    if tags:
        entries["modelspec.tags"] = ", ".join(tags)
    return entries


def _own_entries(config: RunConfig) -> dict[str, str]:
    data = config.model_dump(mode="json")
    for place in (data["data"], data["data"]["prior"], *data["data"]["concepts"]):
        place["dataset"] = _last_part(place["dataset"])
    data["model"]["base"] = _last_part(config.model.base)
    data["adapter"]["on_top_of"] = [_last_part(line) for line in config.adapter.on_top_of]
    entries = {CONFIG_KEY: json.dumps(data, ensure_ascii=False), VERSION_KEY: __version__}
    embedding = config.adapter.embedding
    if embedding.num_vectors:
        learned = {"word": config.data.trigger_word, "vectors": embedding.num_vectors, "per_layer": embedding.per_layer}
        entries[EMBEDDING_KEY] = json.dumps(learned, ensure_ascii=False)
    return entries


def _last_part(name_or_path: str) -> str:
    # PureWindowsPath knows both separators.
    return PureWindowsPath(name_or_path).name or name_or_path


def _commonest_tags(frequency: Mapping[str, Mapping[str, int]]) -> list[str]:
    total: dict[str, int] = {}
    for counts in frequency.values():
        for tag, count in counts.items():
            total[tag] = total.get(tag, 0) + count
    return sorted(total, key=lambda tag: (-total[tag], tag))[:_MAX_TAGS]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)


def config_from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The settings that a LoRA was trained with, for "train again with these settings".

    Returns: a nested dict in the current schema version, not yet validated; data set and base model by name only.
    Raises: LoraFileError: the file was not made by Inkwash, or its settings are damaged. ConfigError: by a newer one.
    """
    if CONFIG_KEY not in metadata:
        raise LoraFileError(
            "This LoRA does not carry Inkwash's training settings.",
            fix="Only LoRAs that were trained with Inkwash, and not stripped of their metadata, have them.",
        )
    try:
        data = json.loads(metadata[CONFIG_KEY])
    except (ValueError, RecursionError) as error:
        raise LoraFileError("The training settings in this LoRA are damaged.") from error
    if not isinstance(data, dict):
        raise LoraFileError("The training settings in this LoRA are damaged.")
    return migrate(data)
