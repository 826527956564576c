"""What other programs call a sampler and its schedule of noise, and which of ours that is. Pure text: no torch."""

from __future__ import annotations

from typing import get_args

from trainer.config.generate import SamplerName

OURS: tuple[SamplerName, ...] = get_args(SamplerName)
_SCHEDULES = ("Karras", "Exponential", "Polyexponential", "SGM Uniform", "Simple", "Beta", "Uniform")
# Where A1111's "Automatic" is another schedule than the sampler's plain one (modules/sd_samplers_kdiffusion.py, since 1.9).
_AUTOMATIC = {
    "dpm2": "Karras",
    "dpm2 a": "Karras",
    "dpm++ 2m": "Karras",
    "dpm++ sde": "Karras",
    "dpm++ 2m sde": "Exponential",
    "dpm++ 2m sde heun": "Exponential",
    "dpm++ 3m sde": "Exponential",
}
_ALIASES = {"plms": "PNDM", "euler ancestral": "Euler a", "k_euler": "Euler", "k_euler_a": "Euler a"}
_ETAS = {"DDIM": "Eta DDIM", "TCD": "Eta", "DPM++ SDE": "Eta", "DPM++ SDE Karras": "Eta"}
_COMFY = {
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "lms": "LMS",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "ddim": "DDIM",
    "deis": "DEIS",
    "uni_pc": "UniPC",
    "lcm": "LCM",
}
_COMFY_SCHEDULES = {
    "normal": "Uniform",
    "ddim_uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "beta": "Beta",
}


def find_sampler(sampler: str, schedule: str = "") -> tuple[str, str]:
    """Our sampler for A1111's names.

    Args:
        sampler: "DPM++ 2M Karras", or "DPM++ 2M" with the schedule apart.
        schedule: "Karras", "Automatic", or empty.

    Returns: its name, empty where we have none; and a sentence about what differs, empty where nothing does.
    """
    plain = _ALIASES.get(sampler.strip().casefold(), sampler.strip())
    noise = schedule.strip()
    if not noise:
        exact = _ours(plain)
        if exact:
            return exact, ""
        noise = "Automatic"
    if noise.casefold() == "automatic":
        noise = _AUTOMATIC.get(plain.casefold(), "Uniform")
    exact = _ours(plain if noise.casefold() in ("uniform", "normal") else f"{plain} {noise}")
    if exact:
        return exact, ""
    near = _ours(plain) or _ours(f"{plain} Karras")
    if near:
        return near, f"The schedule '{noise}' is not known for {plain}: '{near}' was taken."
    return "", f"The sampler '{plain}' is not known here."


def find_comfy_sampler(sampler: str, scheduler: str) -> tuple[str, str]:
    """Our sampler for ComfyUI's names; returns as `find_sampler` does."""
    # ComfyUI has versions of some that compute on the graphics card, and two of the corrector of UniPC.
    plain = sampler.removesuffix("_gpu").removesuffix("_bh2").removesuffix("_cfg_pp")
    return find_sampler(_COMFY.get(plain, sampler), _COMFY_SCHEDULES.get(scheduler, scheduler))


def split_sampler(name: str) -> tuple[str, str]:
    """Our name as A1111's sampler and schedule; the schedule is empty where A1111's automatic one is the same."""
    for schedule in _SCHEDULES:
        if name.endswith(f" {schedule}"):
            return name.removesuffix(f" {schedule}"), schedule
    return name, "Uniform" if name.casefold() in _AUTOMATIC else ""


def eta_name(sampler: str) -> str:
    """What A1111 calls the eta of a sampler of ours; empty where it has none."""
    return _ETAS.get(sampler, "")


def _ours(name: str) -> str:
    wanted = name.casefold()
    return next((our for our in OURS if our.casefold() == wanted), "")
