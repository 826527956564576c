"""Settings of adapters that are valid each, and do not go together."""

from __future__ import annotations

from trainer.config.adapter import METHODS, PLAIN, AdapterConfig, PartLora
from trainer.config.base import foreign_settings
from trainer.config.blocks import BlockRule, parse_rule
from trainer.config.joint import second_path, unused_faults
from trainer.config.targets import pattern_fault

_WITHOUT_SCALE = ("oft", "boft", "ia3")
_RELATIVE = ("dora", "oft", "boft", "ia3")
_HIGHEST_SCALE = 8


def adapter_faults(config: AdapterConfig) -> list[tuple[str, str]]:
    """Settings that do not go together, as (field path, message with the remedy)."""
    faults = [*_rank_faults(config.alone[0]), *_foreign_groups(config), *_joint_faults(config)]
    method = METHODS[config.method].title
    is_random = not config.starts_in_base
    if config.dropout and not (config.method in PLAIN and is_random):
        faults.append(("adapter.dropout", f"{_start(config)} has none: set it to 0, or use adapter.module_dropout"))
    if config.max_norm and not (config.method in PLAIN and is_random):
        faults.append(("adapter.max_norm", f"{_start(config)} has none: set it to 0"))
    has_ranks = config.method in ("loha", "lokr") or (config.method in PLAIN and is_random)
    if config.rank_dropout and not has_ranks:
        faults.append(
            ("adapter.rank_dropout", f"{_start(config)} has none: set it to 0, or use adapter.module_dropout")
        )
    faults += foreign_settings(
        config,
        "adapter",
        {"random": "", "eva": "eva", config.init: "eva" * (config.init == "eva")},
        config.init,
        _start(config),
    )
    if config.init != "random" and config.method not in PLAIN:
        faults.append(("adapter.init", f"{method} starts in its own way: choose random, or the method lora"))
    linear = ("attention", "attention-qv", "attention+mlp", "style-blocks", "content-blocks")
    if config.method == "ia3" and config.unet.rank and config.unet.targets not in linear:
        faults.append(
            ("adapter.unet.targets", "(IA)³ is read by other tools in linear layers only: attention or attention+mlp")
        )
    if config.on_top_of and config.method in _RELATIVE:
        message = f"the change of {method} depends on the weights under it, so that its file alone would be another: choose lora, loha or lokr"
        faults.append(("adapter.on_top_of", message))
    if config.method == "adalora" and config.adalora.start_share + config.adalora.final_share >= 1:
        faults.append(("adapter.adalora.final_share", "with adapter.adalora.start_share it must be less than 1"))
    return faults


def _joint_faults(config: AdapterConfig) -> list[tuple[str, str]]:
    if not config.joint.is_on:
        return unused_faults(config.joint)
    first, second = config.alone
    faults = [(second_path(path), message) for path, message in _rank_faults(second)]
    if config.method not in PLAIN:
        message = f"{METHODS[config.method].title} is trained alone: set it to 0, or choose lora, rslora or loraplus"
        faults.append(("adapter.joint.rank" if config.joint.rank else "adapter.joint.text_encoder_rank", message))
    elif config.init not in ("random", "orthogonal"):
        faults.append(
            ("adapter.init", "two LoRAs that are trained jointly start at random: choose random or orthogonal")
        )
    if not first.has_lora and first.embedding.num_vectors:
        message = "the first of two LoRAs needs a rank, too: give it one, or set adapter.joint.rank to 0"
        faults.append(("adapter.unet.rank", message))
    return faults


def _start(config: AdapterConfig) -> str:
    return {"pissa": "PiSSA", "olora": "OLoRA", "eva": "EVA"}.get(config.init, METHODS[config.method].title)


def _rank_faults(config: AdapterConfig) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    second = config.second_text_encoder
    parts = {"unet": config.unet, "text_encoder": config.text_encoder, "text_encoder_2": second}
    if not config.has_lora and not config.embedding.num_vectors:
        faults.append(
            ("adapter.unet.rank", "nothing would be trained: give the UNet or the text encoder a rank above 0")
        )
    scales = {f"adapter.{name}.alpha": (part.rank, part.alpha) for name, part in parts.items()}
    if not config.text_encoder_2.alpha:
        del scales["adapter.text_encoder_2.alpha"]  # in proportion to the first's
    unet = config.unet
    if unet.conv_rank > 0 or unet.conv_alpha:
        rank = unet.rank if unet.conv_rank < 0 else unet.conv_rank
        scales["adapter.unet.conv_alpha"] = (rank, unet.conv_alpha or unet.alpha * rank / (unet.rank or 1))
    for path, (rank, alpha) in scales.items():
        if rank and config.method not in _WITHOUT_SCALE and config.scale(rank, alpha) > _HIGHEST_SCALE:
            faults.append((path, _scale_message(config, rank, alpha)))
    return [*faults, *_target_faults(config), *_block_faults(config)]


def _scale_message(config: AdapterConfig, rank: int, alpha: float) -> str:
    root = "√rank" if config.method == "rslora" else "rank"
    return (
        f"alpha / {root} is {config.scale(rank, alpha):.0f}, which ends in NaN: use at most {_HIGHEST_SCALE} × {root}"
    )


def _target_faults(config: AdapterConfig) -> list[tuple[str, str]]:
    unet, faults = config.unet, list[tuple[str, str]]()
    fault = pattern_fault(unet.pattern) if unet.targets == "pattern" else ""
    if unet.targets != "pattern" and unet.pattern:
        fault = f"does nothing with the targets '{unet.targets}': choose pattern, or empty it"
    if fault:
        faults.append(("adapter.unet.pattern", fault))
    if unet.targets not in ("all+conv", "pattern"):
        faults += [
            (
                f"adapter.unet.{name}",
                f"the targets '{unet.targets}' have no convolutions: choose all+conv, or set it back",
            )
            for name, is_set in (("conv_rank", unet.conv_rank >= 0), ("conv_alpha", unet.conv_alpha > 0))
            if is_set
        ]
    return faults


def _block_faults(config: AdapterConfig) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    for line in config.blocks:
        rule = parse_rule(line)
        part = config.text_encoder if rule.name.startswith("text_encoder") else config.unet
        if rule.name.startswith("text_encoder_2"):
            part = config.second_text_encoder
        if not part.rank and rule.name.upper() != "BASE":
            faults.append(("adapter.blocks", f"'{line}' is of a part whose rank is 0: give the part a rank above 0"))
        faults += _block_scale_fault(config, rule, line, part)
    return faults


def _block_scale_fault(config: AdapterConfig, rule: BlockRule, line: str, part: PartLora) -> list[tuple[str, str]]:
    rank = part.rank if rule.rank is None else rule.rank
    if rule.alpha is None or not rank or config.method in _WITHOUT_SCALE:
        return []
    if config.scale(rank, rule.alpha) <= _HIGHEST_SCALE:
        return []
    return [("adapter.blocks", f"'{line}': {_scale_message(config, rank, rule.alpha)}")]


def _foreign_groups(config: AdapterConfig) -> list[tuple[str, str]]:
    """Settings of methods that are not chosen: they would do nothing."""
    groups = {word: facts.group for word, facts in METHODS.items()}
    method = "loraplus" if config.joint.is_on and config.joint.method == "loraplus" else config.method
    return foreign_settings(config, "adapter", groups, method, f"the method {method}")
