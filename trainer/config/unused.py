"""Settings that do nothing with the others that are chosen: said when a run begins, lest somebody waits for their effect.

They are not refused, as those of an optimizer or method that is not chosen are: whoever tries out losses or schedules goes back
and forth between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trainer.config.loading import build_config, flatten
from trainer.config.run import RunConfig


@dataclass(frozen=True)
class _Rule:
    """Settings that need another: `needs` says which, `is_met` whether it is so."""

    paths: tuple[str, ...]
    needs: str
    is_met: Callable[[RunConfig], object]


_RULES = (
    _Rule(
        ("objective.huber_delta", "objective.huber_schedule"),
        "objective.loss huber or smooth_l1",
        lambda c: c.objective.loss != "l2",
    ),
    _Rule(
        ("objective.min_snr_gamma",),
        "objective.weighting min_snr",
        lambda c: c.objective.weighting == "min_snr",
    ),
    _Rule(
        ("objective.p2_gamma", "objective.p2_k"),
        "objective.weighting p2",
        lambda c: c.objective.weighting == "p2",
    ),
    _Rule(
        ("objective.timestep_mean", "objective.timestep_std"),
        "objective.timestep_distribution logit_normal",
        lambda c: c.objective.timestep_distribution == "logit_normal",
    ),
    _Rule(
        ("objective.timestep_mode_scale",),
        "objective.timestep_distribution mode",
        lambda c: c.objective.timestep_distribution == "mode",
    ),
    _Rule(
        ("objective.pyramid_noise_discount",),
        "objective.pyramid_noise_levels",
        lambda c: c.objective.pyramid_noise_levels,
    ),
    _Rule(
        ("objective.mask_floor", "objective.mask_normalised"),
        "data.masks",
        lambda c: c.data.masks != "off",
    ),
    _Rule(
        ("schedule.num_cycles",),
        "schedule.kind cosine_with_restarts",
        lambda c: c.schedule.kind == "cosine_with_restarts",
    ),
    _Rule(("schedule.power",), "schedule.kind polynomial", lambda c: c.schedule.kind == "polynomial"),
    _Rule(("data.prior.weight",), "data.prior.class_prompt", lambda c: c.data.prior.class_prompt),
    _Rule(
        ("data.prior.num_class_images",),
        "class pictures that are generated (data.prior.class_prompt)",
        lambda c: c.data.prior.class_prompt and c.data.prior.source == "class_pictures" and not c.data.prior.dataset,
    ),
    _Rule(("data.colour_jitter",), "data.colour_variants", lambda c: c.data.colour_variants),
    _Rule(("training.on_nan_factor",), "training.on_nan lower_rate", lambda c: c.training.on_nan == "lower_rate"),
    _Rule(("training.on_nan_tries",), "training.on_nan", lambda c: c.training.on_nan != "stop"),
)


def unused_settings(config: RunConfig) -> list[str]:
    """What was set without effect, each as "objective.p2_k (only with objective.weighting p2)"; what is as it would be unset is none."""
    chosen, usual = flatten(config), flatten(build_config())
    return [
        f"{path} (only with {rule.needs})"
        for rule in _RULES
        if not rule.is_met(config)
        for path in rule.paths
        if chosen[path] != usual[path]
    ]
