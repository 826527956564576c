"""Pictures from pictures: image-to-image, masks, the larger second pass, seamless tiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tests.unit.test_samplers import SMALL, components  # noqa: F401 - a fixture
from trainer.config.generate import GenerateConfig
from trainer.errors import ConfigError
from trainer.init_pictures import keep_drawing, open_init, open_mask, with_kept_pictures
from trainer.models.components import Components
from trainer.paths import DataFolder
from trainer.sampling.larger import Enlargement, sample_larger
from trainer.sampling.painting import Painting, encode
from trainer.sampling.request import Start
from trainer.sampling.sampler import decode, sample, sample_latents
from trainer.sampling.savers import MemorySavers
from trainer.sampling.seamless import seamless

NONE, ALL = torch.zeros(1, 8, 8), torch.ones(1, 8, 8)


def noisy_picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def square_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def test_strength_is_the_share_that_is_made_anew(components: Components) -> None:  # noqa: F811
    origin = encode(components, noisy_picture(32, 32))
    request = replace(SMALL, num_inference_steps=10)

    def latents(strength: float, repainted: Tensor | None = None) -> Tensor:
        steps: list[int] = []
        asked = replace(request, start=Start(origin, strength, repainted))
        made = sample_latents(components, [asked], on_step=lambda step, total, _: steps.append(total))[0]
        assert len(steps) == round(10 * strength)
        return made

    assert torch.equal(latents(0.0), origin)
    assert torch.equal(latents(1.0), sample_latents(components, [request])[0])
    changes = [float((latents(strength) - origin).abs().mean()) for strength in (0.1, 0.4, 0.9)]
    assert changes == sorted(changes)
    assert torch.equal(latents(0.5, NONE), origin)
    assert torch.allclose(latents(0.5, ALL), latents(0.5), atol=1e-4)


def test_a_picture_from_a_picture_is_the_same_alone_and_in_a_batch(components: Components) -> None:  # noqa: F811
    starts = [Start(encode(components, noisy_picture(32, 32, seed)), 0.5, ALL.clone().tril()) for seed in (1, 2)]
    requests = [replace(SMALL, start=start, sampler="Euler a", seed=seed) for seed, start in enumerate(starts)]
    together = sample_latents(components, requests)
    for request, made in zip(requests, together, strict=True):
        assert torch.allclose(sample_latents(components, [request])[0], made, atol=1e-4)


@pytest.mark.parametrize("area", ["whole picture", "only masked"])
def test_outside_of_the_mask_every_pixel_stays(components: Components, area: str) -> None:  # noqa: F811
    size = (32, 32) if area == "whole picture" else (80, 48)
    picture, mask = noisy_picture(*size), square_mask(size, (12, 10, 22, 20))
    config = GenerateConfig.model_validate(
        {"init_image": "a", "mask": "b", "masked_area": area, "mask_blur": 2, "mask_padding": 4}
    )
    painting = Painting.of(config, picture, mask, (32, 32))
    request = replace(SMALL, start=painting.start(components, 0.8))
    result = painting.finish(sample(components, [request])[0])
    assert result.size == size
    before, after = np.asarray(picture).astype(int), np.asarray(result).astype(int)
    changed = (before != after).any(2)
    assert changed[12:18, 14:20].mean() > 0.9
    outside = np.ones(changed.shape, bool)
    outside[10 - 8 : 20 + 8, 12 - 8 : 22 + 8] = False
    assert not changed[outside].any()


def test_only_the_masked_part_is_seen_in_the_shape_of_the_size() -> None:
    config = GenerateConfig.model_validate(
        {"init_image": "a", "mask": "b", "masked_area": "only masked", "mask_blur": 0, "mask_padding": 10}
    )
    picture = noisy_picture(200, 100)
    painting = Painting.of(config, picture, square_mask((200, 100), (180, 40, 190, 50)), (64, 32))
    left, top, right, bottom = painting.box
    assert (right - left, bottom - top) == (60, 30)
    assert (left, right) == (140, 200)
    assert top <= 30
    assert bottom >= 60
    assert painting.seen.size == (64, 32)
    assert painting.seen.tobytes() == picture.crop(painting.box).resize((64, 32), Image.Resampling.LANCZOS).tobytes()


def test_the_second_pass_leaves_and_enlarges(components: Components) -> None:  # noqa: F811
    first = sample_latents(components, [SMALL])[0]

    def second(scale: float, upscaler: str, strength: float, steps: int = 0) -> Tensor:
        enlargement = Enlargement(scale, upscaler, strength, steps)  # type: ignore[arg-type]
        return sample_larger(components, [SMALL], enlargement)[0]

    assert torch.equal(second(1, "latent", 0.0), first)
    enlarged = functional.interpolate(first[None], scale_factor=2, mode="nearest-exact")[0]
    assert torch.equal(second(2, "latent nearest", 0.0), enlarged)
    picture = decode(components, [first])[0].resize((48, 48), Image.Resampling.LANCZOS)
    assert torch.equal(second(1.5, "lanczos", 0.0), encode(components, picture))
    counted: list[int] = []
    sample_larger(
        components,
        [SMALL],
        Enlargement(2, "latent", 0.5, 8),
        on_step=(None, lambda step, total, latents: counted.append(latents.shape[-1])),
    )
    assert counted == [16] * 4


def test_seamless_pictures_go_on_at_the_opposite_edge(components: Components) -> None:  # noqa: F811
    """Where every edge is like the middle, shifted latents give the shifted picture."""
    latents = sample_latents(components, [SMALL])[0]

    def difference() -> int:
        plain, shifted = (decode(components, [values])[0] for values in (latents, latents.roll((3, 2), (1, 2))))
        rolled = np.roll(np.asarray(plain).astype(int), (12, 8), (0, 1))
        return int(np.abs(rolled - np.asarray(shifted)).max())

    assert difference() > 2
    with seamless(components):
        assert difference() <= 1
        tile = sample_latents(components, [SMALL])[0]
    assert not torch.allclose(tile, latents, atol=1e-3)
    assert torch.equal(sample_latents(components, [SMALL])[0], latents)


def test_memory_savers_change_no_picture_and_leave_no_trace(components: Components) -> None:  # noqa: F811
    before = sample(components, [SMALL])[0]
    kinds = [type(processor) for processor in components.unet.attn_processors.values()]
    savers = MemorySavers(components, can_move_text=True)
    words = [savers.take_next() for _ in range(3)]
    assert words[-1] is None
    assert all(words[:-1])
    assert components.vae.use_tiling
    assert [type(processor) for processor in components.unet.attn_processors.values()] != kinds
    saved = np.asarray(sample(components, [SMALL])[0]).astype(int)
    assert np.abs(saved - np.asarray(before)).max() <= 1
    savers.undo()
    assert not components.vae.use_tiling
    assert [type(processor) for processor in components.unet.attn_processors.values()] == kinds
    assert sample(components, [SMALL])[0].tobytes() == before.tobytes()


def config_of(**values: object) -> GenerateConfig:
    return GenerateConfig.model_validate(values)


def test_pictures_are_kept_by_content_and_refused_in_words(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    picture, mask = tmp_path / "a cat.png", tmp_path / "mask.png"
    noisy_picture(64, 48).save(picture)
    square_mask((40, 36), (2, 2, 6, 6)).save(mask)
    kept = with_kept_pictures(config_of(init_image=str(picture), mask=str(mask)), data)
    picture.unlink()
    assert (data.inputs / kept.init_image).is_file()
    assert with_kept_pictures(kept, data) == kept
    assert open_init(kept, data).tobytes() == noisy_picture(64, 48).tobytes()
    assert open_mask(kept, data).size == (64, 48)
    Image.new("L", (40, 40)).save(mask)
    (tmp_path / "text.png").write_text("no picture")
    for word, values in (
        ("no picture '.*cat", {"init_image": str(picture)}),
        ("mask is empty", {"init_image": kept.init_image, "mask": str(mask)}),
        ("start picture cannot be used", {"init_image": str(tmp_path / "text.png")}),
        ("no picture", {"init_image": "../inputs/" + kept.init_image}),
    ):
        with pytest.raises(ConfigError, match=word):
            with_kept_pictures(config_of(**values), data)
    for values in ({"mask": "m.png"}, {"masked_area": "only masked"}):
        with pytest.raises(ValueError, match=r"set init_image|there is no mask"):
            config_of(**values)
    with pytest.raises(ValueError, match="keeps its size"):
        config_of(init_image="a", mask="b", hires_scale=2)


def test_what_is_drawn_is_the_mask(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    background, layer = tmp_path / "background.png", tmp_path / "layer.png"
    noisy_picture(64, 48).save(background)
    drawn = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    drawn.save(layer)
    init, mask = keep_drawing(data, background, [layer])
    assert (data.inputs / init).is_file()
    assert mask == ""
    drawn.paste((255, 255, 255, 255), (5, 5, 10, 12))
    drawn.save(layer)
    init, mask = keep_drawing(data, background, [layer])
    assert open_mask(config_of(init_image=init, mask=mask), data).getbbox() == (5, 5, 10, 12)
