"""Which layers of a model are trained, each with its rank and alpha: the settings on the modules that are really there."""

from __future__ import annotations

from trainer.adapters.lora_layer import weight_shape
from trainer.block_names import LISTS, LISTS_OF, block_of
from trainer.config.adapter import AdapterConfig
from trainer.config.blocks import (
    LayerChoice,
    blocks_of,
    choose_layer,
    is_in_block,
    parse_rates,
    parse_rule,
    part_lora,
)
from trainer.config.joint import second_path
from trainer.config.targets import BLOCK_SETS
from trainer.errors import ConfigError, Finding
from trainer.models.components import Components

Layers = dict[str, dict[str, LayerChoice]]
"""By part, and by path within the part; only what is trained."""


def chosen_layers(components: Components, config: AdapterConfig) -> Layers:
    """The layers that are trained.

    Raises: ConfigError: a chosen set of layers, a block or a second text encoder does not exist in this model; a list of
        block rates is for another family; or nothing is left to train.
    """
    _check_family(components, config)
    targets = components.family.target_modules(components, config)
    for part, paths in targets.items():
        if not paths:
            chosen = part_lora(config, part).targets
            raise ConfigError(
                f"This base model has no layers of the set '{chosen}'.",
                where=f"adapter.{part}.{'pattern' if chosen == 'pattern' else 'targets'}",
            )
    all_paths = [f"{part}.{path}" for part, paths in targets.items() for path in paths]
    _check_blocks(config, all_paths)
    _check_rates(config, all_paths)
    layers: Layers = {}
    for part, paths in targets.items():
        for path in sorted(paths):
            choice = choose_layer(config, f"{part}.{path}", weight_shape(getattr(components, part).get_submodule(path)))
            if choice.rank:
                layers.setdefault(part, {})[path] = choice
    if not layers and config.has_lora:
        raise ConfigError("Nothing would be trained: every block has the rank or the rate 0.", where="adapter.blocks")
    return layers


def chosen_together(components: Components, config: AdapterConfig) -> list[Layers]:
    """The layers of each adapter that is trained: of one, or of two jointly.

    Raises: ConfigError: as `chosen_layers`, at the settings that they come from.
    """
    first, *others = config.alone
    found = [chosen_layers(components, first)]
    for other in others:
        try:
            found.append(chosen_layers(components, other))
        except ConfigError as error:
            findings = [Finding(second_path(finding.where), finding.message) for finding in error.findings]
            where = second_path(error.where or "")
            raise ConfigError(
                f"The second LoRA: {error.message}", where=where, fix=error.fix, findings=findings
            ) from error
    return found


def _check_family(components: Components, config: AdapterConfig) -> None:
    family, targets = components.family.name, config.unet.targets
    if config.unet.rank and targets in BLOCK_SETS and family != "sdxl":
        raise ConfigError(
            f"Which blocks hold style and which content is known for SDXL only, so '{targets}' cannot be chosen here.",
            where="adapter.unet.targets",
            fix="Choose another set, or name blocks yourself: targets pattern, or adapter.blocks.",
        )
    if config.text_encoder_2.rank >= 0 and "text_encoder_2" not in components.text_encoders:
        raise ConfigError(
            f"The base model '{components.name}' has one text encoder only.",
            where="adapter.text_encoder_2.rank",
            fix="Set it back to -1.",
        )
    rates = parse_rates(config.block_rates)
    if rates and len(rates) not in LISTS_OF[family]:
        counts = " or ".join(str(count) for count in LISTS_OF[family])
        raise ConfigError(
            f"Lists of {len(rates)} block weights are not for this family of models.",
            where="adapter.block_rates",
            fix=f"Give {counts} numbers, or name blocks in adapter.blocks.",
        )


def _check_blocks(config: AdapterConfig, paths: list[str]) -> None:
    unknown = [
        Finding("adapter.blocks", f"'{rule.name}' is no block with layers of the chosen sets")
        for rule in map(parse_rule, config.blocks)
        if not any(is_in_block(rule.name, path) for path in paths)
    ]
    if unknown:
        raise ConfigError(
            "There are no such blocks among the layers that are trained.",
            where="adapter.blocks",
            findings=unknown,
            fix=f"Choose among: {', '.join(blocks_of(paths))}; or choose more layers.",
        )


def _check_rates(config: AdapterConfig, paths: list[str]) -> None:
    rates = parse_rates(config.block_rates)
    if not rates:
        return
    missing = sorted({block_of(path) for path in paths} - {*LISTS[len(rates)].names})
    if missing:
        raise ConfigError(
            f"The list of {len(rates)} block weights says nothing of {', '.join(missing)}, which are trained too.",
            where="adapter.block_rates",
            fix="Give the longer list (26 numbers, for SDXL 20), or train attention layers only.",
        )
