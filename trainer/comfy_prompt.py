"""The graph that ComfyUI keeps in its pictures (`prompt`), as far as its common nodes go. Pure data: no torch.

`{"3": {"class_type": "KSampler", "inputs": {"seed": 1, "model": ["4", 0], …}}, …}`: an input is a value, or a link
`[node, output]`. From the sampler the links lead to the model with its LoRAs, the prompts, and the size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_CHARACTERS = 1_000_000
_MAX_HOPS = 200
_TEXT_INPUTS = ("text", "string", "value", "text_g", "prompt", "populated_text", "wildcard_text", "text_positive")
_THROUGH = ("conditioning", "conditioning_1", "conditioning_to", "positive", "base_positive")
_LOADERS = ("CheckpointLoaderSimple", "CheckpointLoader", "UNETLoader", "unCLIPCheckpointLoader", "CheckpointLoaderNF4")
_LORAS = ("LoraLoader", "LoraLoaderModelOnly")
_SAMPLERS = ("KSampler", "KSamplerAdvanced", "KSampler (Efficient)", "SamplerCustom")


@dataclass
class ComfyRecipe:
    """What a graph says of a picture.

    Attributes:
        values: `prompt`, `negative_prompt`, `seed`, `num_inference_steps`, `guidance_scale`, `width`, `height`,
            `clip_skip`, `strength`, `hires_scale`, `hires_strength`, `hires_steps`, as far as they were found; not checked.
        sampler, schedule, model, upscaler: under their own names; empty if not found.
        loras: as (file name, UNet weight, text-encoder weight), in the order of use.
        notes: what is in the graph and could not be taken over.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sampler: str = ""
    schedule: str = ""
    model: str = ""
    upscaler: str = ""
    loras: list[tuple[str, float, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse_comfy_prompt(text: str) -> ComfyRecipe:
    """Read the graph.

    Raises: ValueError: it is no graph of ComfyUI, it is too long, or none of its nodes is a sampler that is known.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError("the graph is too long")
    try:
        graph = json.loads(text)
    except RecursionError as error:
        raise ValueError("the graph is nested too deep") from error
    nodes = (
        {
            str(key): node
            for key, node in graph.items()
            if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
        }
        if isinstance(graph, dict)
        else {}
    )
    samplers = [key for key, node in nodes.items() if node.get("class_type") in _SAMPLERS]
    if not samplers:
        raise ValueError("it has no sampler that is known")
    return _Reader(nodes).read(samplers)


class _Reader:
    def __init__(self, nodes: Mapping[str, dict[str, Any]]) -> None:
        self._nodes = nodes
        self._recipe = ComfyRecipe()
        self._used: set[str] = set()

    def read(self, samplers: list[str]) -> ComfyRecipe:
        recipe, values = self._recipe, self._recipe.values
        # Of several passes the first is the one that starts from noise alone; a second enlarges.
        sampler = next((key for key in samplers if self._empty_latent(key)), samplers[0])
        self._use(sampler)
        second = next((key for key in samplers if key != sampler and self._hires(key, sampler)), None)
        if further := len(samplers) - 1 - (second is not None):
            recipe.notes.append(f"{further} further sampling {'pass' if further == 1 else 'passes'} of the graph")
        for name, names in {
            "seed": ("seed", "noise_seed"),
            "num_inference_steps": ("steps",),
            "guidance_scale": ("cfg",),
        }.items():
            found = next((value for key in names if (value := self._plain(sampler, key)) is not None), None)
            if isinstance(found, int | float) and not isinstance(found, bool):
                values[name] = found
        recipe.sampler = str(self._plain(sampler, "sampler_name") or "")
        recipe.schedule = str(self._plain(sampler, "scheduler") or "")
        denoise = self._denoise(sampler)
        if denoise < 1:
            values["strength"] = denoise
            if steps := _all_steps(values.get("num_inference_steps"), denoise):
                values["num_inference_steps"] = steps
            recipe.notes.append(f"the picture that it was made from, with denoise {denoise:g}")
        for name, key in (("prompt", "positive"), ("negative_prompt", "negative")):
            text = self._text(self._link(sampler, key))
            if text is not None:
                values[name] = text
        self._model(self._link(sampler, "model"))
        self._size(sampler)
        self._clip_skip()
        rest = sorted({str(node.get("class_type"))[:60] for key, node in self._nodes.items() if key not in self._used})
        unread = [name for name in rest if name not in (*_HARMLESS, *_SAMPLERS)]
        if unread:
            recipe.notes.append(f"nodes that are not known: {', '.join(unread[:12])}")
        return recipe

    def _denoise(self, sampler: str) -> float:
        value = self._plain(sampler, "denoise")
        return float(value) if isinstance(value, int | float) and 0 < value < 1 else 1.0

    def _hires(self, sampler: str, first: str) -> bool:
        """Whether a sampler enlarges what the first one made; its values are then read."""
        path, key = [], self._link(sampler, "latent_image")
        for _ in range(_MAX_HOPS):
            if key is None or key == first:
                break
            path.append(key)
            key = next((to for at in ("samples", "pixels", "image") if (to := self._link(key, at))), None)
        upscalers = [at for at in path if self._kind(at) in _UPSCALERS]
        if key != first or len(upscalers) != 1 or any(self._kind(at) not in (*_UPSCALERS, *_VAES) for at in path):
            return False
        scale = self._scale(upscalers[0], first)
        if scale is None:
            return False
        self._used |= {sampler, *path}
        denoise, steps = self._denoise(sampler), self._plain(sampler, "steps")
        self._recipe.values |= {"hires_scale": scale, "hires_strength": denoise}
        self._recipe.values["hires_steps"] = _all_steps(steps, denoise)
        method = str(self._plain(upscalers[0], "upscale_method") or "")
        is_latent = self._kind(upscalers[0]).startswith("Latent")
        self._recipe.upscaler = _LATENT_METHODS.get(method, f"Latent ({method})") if is_latent else method
        return True

    def _scale(self, upscaler: str, first: str) -> float | None:
        scale = self._plain(upscaler, "scale_by")
        if isinstance(scale, int | float):
            return float(scale)
        latent = self._empty_latent(first)
        if latent is None:
            return None
        sides = [(self._plain(latent, side), self._plain(upscaler, side)) for side in ("width", "height")]
        if not all(isinstance(value, int) and value > 0 for pair in sides for value in pair):
            return None
        (width, wide), (height, high) = sides
        # Another shape would be stretched or cut: no hires fix of ours.
        return round(wide / width, 4) if abs(wide * height - high * width) <= 0.02 * high * width else None

    def _use(self, key: str) -> dict[str, Any]:
        self._used.add(key)
        return self._nodes[key]["inputs"]

    def _kind(self, key: str) -> str:
        return str(self._nodes[key].get("class_type"))

    def _link(self, key: str, name: str) -> str | None:
        value = self._nodes[key]["inputs"].get(name)
        is_link = isinstance(value, list) and len(value) == 2 and str(value[0]) in self._nodes
        return str(value[0]) if is_link else None

    def _plain(self, key: str, name: str) -> Any:
        """An input's value, through the nodes that only hold one (primitives, seeds, selectors)."""
        for _ in range(_MAX_HOPS):
            value = self._nodes[key]["inputs"].get(name)
            other = self._link(key, name)
            if other is None:
                return None if isinstance(value, list | dict) else value
            inputs = self._use(other)
            name = next((at for at in (name, *_TEXT_INPUTS, "seed", "int", "float", "number") if at in inputs), "")
            key = other
        return None

    def _text(self, key: str | None) -> str | None:
        """The text of a conditioning: of the first text encoder that it leads to."""
        for _ in range(_MAX_HOPS):
            if key is None:
                return None
            inputs = self._use(key)
            if name := next((at for at in _TEXT_INPUTS if at in inputs), ""):
                found = self._plain(key, name)
                return found if isinstance(found, str) else None
            if self._kind(key) == "ConditioningZeroOut":
                return ""
            key = next((to for at in _THROUGH if (to := self._link(key, at))), None)
        return None

    def _model(self, key: str | None) -> None:
        """LoRAs on the way to the base model; those nearest to it are used first."""
        for _ in range(_MAX_HOPS):
            if key is None:
                break
            inputs, kind = self._use(key), self._kind(key)
            if kind in _LORAS:
                self._lora(key, with_text="strength_clip" in inputs)
            elif kind in _LOADERS or "ckpt_name" in inputs:
                self._recipe.model = str(self._plain(key, "ckpt_name") or self._plain(key, "unet_name") or "")
                break
            elif kind not in _HARMLESS:
                self._used.discard(key)
            key = self._link(key, "model")
        self._recipe.loras.reverse()

    def _lora(self, key: str, *, with_text: bool) -> None:
        name, unet = self._plain(key, "lora_name"), self._plain(key, "strength_model")
        text = self._plain(key, "strength_clip") if with_text else 0.0
        if not isinstance(name, str) or not all(isinstance(value, int | float) for value in (unet, text)):
            self._recipe.notes.append("a LoRA whose name or strength could not be read")
        elif unet or text:
            self._recipe.loras.append((name, float(unet), float(text)))

    def _empty_latent(self, sampler: str) -> str | None:
        key = self._link(sampler, "latent_image")
        if key is None:
            return None
        inputs = self._nodes[key]["inputs"]
        return key if "width" in inputs and "height" in inputs and "samples" not in inputs else None

    def _size(self, sampler: str) -> None:
        key = self._empty_latent(sampler)
        if key is None:
            return
        self._use(key)
        for name in ("width", "height"):
            value = self._plain(key, name)
            if isinstance(value, int | float):
                self._recipe.values[name] = value

    def _clip_skip(self) -> None:
        for key in self._nodes:
            if self._kind(key) == "CLIPSetLastLayer":
                self._used.add(key)
                layer = self._plain(key, "stop_at_clip_layer")
                if isinstance(layer, int) and layer < 0:
                    self._recipe.values["clip_skip"] = -layer


def _all_steps(steps: Any, denoise: float) -> Any:
    """ComfyUI does all the steps in the last part of the noise; ours are those of the whole, of which a share is done."""
    return round(steps / denoise) if isinstance(steps, int | float) else 0


_UPSCALERS = ("LatentUpscale", "LatentUpscaleBy", "ImageScale", "ImageScaleBy")
_VAES = ("VAEDecode", "VAEDecodeTiled", "VAEEncode", "VAEEncodeTiled")
_LATENT_METHODS = {"bilinear": "Latent", "bicubic": "Latent (bicubic)", "nearest-exact": "Latent (nearest-exact)"}
_HARMLESS = (
    "VAEDecode", "VAEDecodeTiled", "VAELoader", "SaveImage", "PreviewImage", "CLIPTextEncode", "CLIPLoader", "Note",
    "PrimitiveNode", "Reroute", "CLIPSetLastLayer", "EmptyLatentImage", "LatentUpscale", "LatentUpscaleBy",
    "ModelSamplingDiscrete", "SaveImageWebsocket",
)  # fmt: skip
