"""Class pictures for prior preservation (DreamBooth, arXiv 2208.12242): made once by the base model, then kept."""

from __future__ import annotations

import time
from pathlib import Path

from trainer.config.concept import ConceptConfig
from trainer.config.data import DataConfig
from trainer.config.run import RunConfig
from trainer.data.examples import Concept, Example, concept_examples
from trainer.data.randomness import stream_seed
from trainer.data.tensor_store import content_key
from trainer.dataset.buckets import Bucket
from trainer.files import file_sha256, write_atomically
from trainer.jobs import JobContext
from trainer.models.components import Components
from trainer.models.devices import dtype_name
from trainer.paths import DataFolder
from trainer.sampling.sampler import SampleRequest, sample
from trainer.training.preflight import read_pictures

_STEPS, _GUIDANCE = 25, 5.0
_BATCH = 4


def class_examples(context: JobContext, config: RunConfig, data: DataFolder, components: Components) -> list[Example]:
    """The class pictures of a run, made where they are missing; empty where prior preservation is off or needs none.

    To be called before an adapter is attached: they show what the base model made of the class. More pictures than an
    earlier run had only add to its. The user's own stand for those of the first class prompt.
    """
    prior = config.data.prior
    if not prior.class_prompt or prior.source != "class_pictures":
        return []
    prompts = [*([] if prior.dataset else [prior.class_prompt]), *(each.class_prompt for each in config.data.concepts)]
    found = _own_class_examples(context, config, data) if prior.dataset else []
    for prompt in dict.fromkeys(filter(None, prompts)):
        found += _generated(context, config, data, components, prompt)
    return found


def class_data(data: DataConfig) -> DataConfig:
    """The settings as they are for class pictures: whole, and in one caption, cut and colour."""
    changes = {"masks": "off", "several_captions": False, "crop_variants": 0, "colour_variants": 0}
    return data.model_copy(update=changes)


def _own_class_examples(context: JobContext, config: RunConfig, data: DataFolder) -> list[Example]:
    prior = config.data.prior
    info, pictures = read_pictures(context, config, data, prior.dataset)
    words = ConceptConfig(dataset=prior.dataset, instance_prompt=prior.class_prompt)
    return concept_examples(Concept(f"class pictures {info.title}", pictures, words), class_data(config.data))


def _generated(
    context: JobContext, config: RunConfig, data: DataFolder, components: Components, prompt: str
) -> list[Example]:
    side = config.data.resolution // components.vae_scale_factor * components.vae_scale_factor
    folder = data.cache / "class_images" / _key(config, components, side, prompt)
    paths = [folder / f"{index:05d}.png" for index in range(config.data.prior.num_class_images)]
    _make_missing(context, components, paths, [_request(config, side, index, prompt) for index in range(len(paths))])
    bucket = Bucket(side, side)
    return [
        Example(f"class picture {path.stem}", path, file_sha256(path), prompt, bucket, (side, side)) for path in paths
    ]


def _key(config: RunConfig, components: Components, side: int, prompt: str) -> str:
    return content_key(
        prompt=prompt,
        models=[components.fingerprint(part) for part in components.parts],
        precision=dtype_name(components.dtype),
        size=side,
        clip_skip=config.model.clip_skip,
        **_unusual_model(config),
        steps=_STEPS,
        guidance=_GUIDANCE,
    )[:32]


def _unusual_model(config: RunConfig) -> dict[str, str]:
    """Settings that overrule what the model says of itself, or pack it; they make other pictures of the same weights."""
    chosen = {"prediction_type": config.model.prediction_type, "zero_terminal_snr": config.model.zero_terminal_snr}
    found = {name: value for name, value in chosen.items() if value != "auto"}
    return found if config.model.quantization == "none" else {**found, "quantization": config.model.quantization}


def _make_missing(
    context: JobContext, components: Components, paths: list[Path], requests: list[SampleRequest]
) -> None:
    missing = [(index, path) for index, path in enumerate(paths) if not path.exists()]
    started = time.monotonic()
    for start in range(0, len(missing), _BATCH):
        spent = time.monotonic() - started
        eta = spent / start * (len(missing) - start) if start else None
        context.stage("Making class pictures", len(paths) - len(missing) + start, len(paths), eta)
        chunk = missing[start : start + _BATCH]
        wanted = [requests[index] for index, _ in chunk]
        pictures = sample(components, wanted, on_step=lambda done, total, latents: context.check_stop())
        for (_, path), picture in zip(chunk, pictures, strict=True):
            write_atomically(path, lambda temporary, image=picture: image.save(temporary), "a class picture")


def _request(config: RunConfig, side: int, index: int, prompt: str) -> SampleRequest:
    return SampleRequest(
        prompt=prompt,
        negative_prompt="",
        width=side,
        height=side,
        num_inference_steps=_STEPS,
        sampler="DPM++ 2M Karras",
        guidance_scale=_GUIDANCE,
        seed=stream_seed("class picture", index),
        clip_skip=config.model.clip_skip,
        has_weights=False,
    )
