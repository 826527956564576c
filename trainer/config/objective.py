"""What is optimised: noise, loss weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.config.base import Settings


class ObjectiveConfig(Settings):
    """The denoising objective."""

    min_snr_gamma: Annotated[float, Field(ge=0, le=100)] = 5.0
    """Min-SNR loss weighting (arXiv 2303.09556): caps the pull of nearly clean pictures, so fewer steps are needed. 5 is usual; 0 turns it off."""
    noise_offset: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Adds a constant offset to the noise of each channel, so that very dark and very light pictures can be learned. 0.05 to 0.1 for styles with large white or black areas."""
    min_timestep: Annotated[int, Field(ge=0, le=999)] = 0
    """Lowest timestep trained (0 is a clean picture)."""
    max_timestep: Annotated[int, Field(ge=1, le=1000)] = 1000
    """Timesteps below this number are trained (1000 is pure noise)."""
