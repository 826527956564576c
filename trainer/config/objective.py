"""What is optimised: noise, timesteps, loss and its weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import Settings

LossName = Literal["l2", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
Weighting = Literal["constant", "min_snr", "debiased", "p2"]
TimestepDistribution = Literal["uniform", "logit_normal", "mode"]


class ObjectiveConfig(Settings):
    """The denoising objective."""

    loss: LossName = "l2"
    """How far the prediction is from its target: `l2` is the mean square, `huber` and `smooth_l1` forgive large errors, so that single odd pictures pull less."""
    huber_delta: Annotated[float, Field(gt=0, le=10)] = 0.1
    """Errors above this count in proportion instead of squared (kohya's huber_c). Only for the losses huber and smooth_l1."""
    huber_schedule: HuberSchedule = "snr"
    """How that threshold depends on the timestep: `constant`; `exponential` and `snr` start at 1 for clean pictures and fall to huber_delta at pure noise (arXiv 2403.16728)."""
    weighting: Weighting = "min_snr"
    """How much each timestep counts: `constant`; `min_snr` (arXiv 2303.09556) caps nearly clean pictures; `debiased` (arXiv 2310.08442) and `p2` (arXiv 2204.00227) lift noisy ones, where shapes and colours are decided."""
    min_snr_gamma: Annotated[float, Field(ge=0, le=100)] = 5.0
    """Cap of the min-SNR weighting: fewer steps are needed. 5 is usual; 0 turns the weighting off."""
    p2_gamma: Annotated[float, Field(ge=0, le=5)] = 1.0
    """Strength of the p2 weighting: 0.5 is mild, 1 strong."""
    p2_k: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Stabiliser of the p2 weighting 1 / (k + SNR)^gamma; 1 is the paper's."""
    mask_floor: Annotated[float, Field(ge=0, le=1)] = 0.1
    """With data.masks: how much the background counts against the subject. 0: not at all, which can let it fall apart; 0.1 keeps it in shape; 1 is no mask."""
    mask_normalised: bool = False
    """With data.masks: divide each picture's loss by its masked share, so that a small subject counts as much as a large one."""
    noise_offset: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Adds a constant offset to the noise of each channel, so that very dark and very light pictures can be learned. 0.05 to 0.1 for styles with large white or black areas."""
    pyramid_noise_levels: Annotated[int, Field(ge=0, le=10)] = 0
    """Adds noise of this many resolutions, each coarser than the one before: another way to learn dark and light pictures; 6 to 10 are usual. 0 turns it off."""
    pyramid_noise_discount: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Strength of each coarser level of the pyramid noise against the one before; 0.1 to 0.4 are usual."""
    input_perturbation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Extra noise that the model sees but is not asked for (arXiv 2301.11706), against errors that add up while sampling. 0.1 is the paper's; 0 turns it off."""
    min_timestep: Annotated[int, Field(ge=0, le=999)] = 0
    """Lowest timestep trained (0 is a clean picture)."""
    max_timestep: Annotated[int, Field(ge=1, le=1000)] = 1000
    """Timesteps below this number are trained (1000 is pure noise)."""
    timestep_distribution: TimestepDistribution = "uniform"
    """How often each timestep is drawn: `uniform`; `logit_normal`, a bell over the range; `mode`, a hill whose ends stay above zero (arXiv 2403.03206)."""
    timestep_mean: Annotated[float, Field(ge=-5, le=5)] = 0.0
    """Centre of logit_normal: 0 is the middle, above 0 nearer to pure noise (composition), below 0 nearer to the clean picture (detail)."""
    timestep_std: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Width of logit_normal: 1 is the paper's, smaller is narrower."""
    timestep_mode_scale: Annotated[float, Field(ge=-1, le=1.75)] = 1.29
    """Height of the hill of `mode`: 0 is uniform, 1.29 the paper's, below 0 favours both ends."""
