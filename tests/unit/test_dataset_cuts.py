"""What the trainer feeds of cropped pictures, against the preview: pixels, masks, addresses, identity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_model import make_tiny_model
from trainer.config.data import DataConfig
from trainer.data.examples import Example, at_all_resolutions, make_examples
from trainer.data.latents import LatentCache, to_pixels
from trainer.data.masks import MaskCache
from trainer.data.tensor_store import TensorStore
from trainer.data.variants import PLAIN, Variant
from trainer.dataset.cuts import cuts_of
from trainer.dataset.preparing import set_backgrounds, set_crops, turn_pictures
from trainer.dataset.store import DatasetStore
from trainer.models.components import Components, load_components
from trainer.paths import DataFolder
from trainer.training.identity import _facts, changes_between

CONFIG = DataConfig(resolution=64, bucket_step=16, resolutions=[96], masks="any")


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), torch.float32)


def fed(
    components: Components, examples: list[Example], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[Any, Any]:
    """The tensors that go into the VAE, by picture and size."""
    found: dict[Any, Any] = {}
    latents = LatentCache(TensorStore(cache), components, "vae")
    for example in examples:

        def encode(self: Any, parts: Components, pixels: torch.Tensor, example: Example = example) -> Any:
            found[example.name, example.bucket] = pixels[0].clone()
            shape = (1, 4, example.bucket.height // 8, example.bucket.width // 8)
            return torch.zeros(shape), torch.ones(shape)

        monkeypatch.setattr(type(components.family), "encode_images", encode)
        latents.prepare([(example, PLAIN)], lambda done, total: None)
    return found


@pytest.mark.parametrize("change", [{}, {"buckets": False}, {"bucket_no_upscale": True}, {"max_aspect_ratio": 4.0}])
def test_the_preview_is_what_the_vae_is_fed_to_the_pixel(
    linked: DatasetStore,
    components: Components,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    config = CONFIG.model_copy(update=change)
    turn_pictures(linked, "pictures", ["wide.png"], 90)
    turn_pictures(linked, "pictures", ["clear.png", "turned.jpg"], 180)
    crops = {"tall.png": (3, 40, 80, 200), "turned.jpg": (0, 10, 70, 141), "wide.png": (0, 30, 95, 190)}
    set_crops(linked, "pictures", crops)
    set_backgrounds(linked, "pictures", ["wide.png"], "grey")
    pictures = linked.scan("pictures").usable
    examples = at_all_resolutions(make_examples(pictures, config, ""), config)
    tensors = fed(components, examples, tmp_path / "cache", monkeypatch)
    cuts = cuts_of(pictures, config)
    assert {(cut.facts.name, cut.bucket) for cut in cuts} == tensors.keys()
    assert len(cuts) == len(examples)
    for cut in cuts:
        assert torch.equal(to_pixels(cut.picture()), tensors[cut.facts.name, cut.bucket])


def test_latents_masks_and_identity_follow_from_the_crop(
    linked: DatasetStore, components: Components, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"buckets": False, "resolutions": []})
    latents = LatentCache(TensorStore(tmp_path / "latents"), components, "vae")
    masks = MaskCache(TensorStore(tmp_path / "masks"), 8)

    def wide() -> Example:
        examples = make_examples(linked.scan("pictures").usable, config, "")
        return next(example for example in examples if example.name == "wide.png")

    whole = wide()
    set_crops(linked, "pictures", {"wide.png": (100, 0, 200, 100)})
    right = wide()
    set_crops(linked, "pictures", {"wide.png": (0, 0, 100, 100)})
    left = wide()
    assert len({latents.key(example) for example in (whole, right, left)}) == 3
    assert len({masks.key(example, PLAIN) for example in (whole, right, left)}) == 3
    # The subject is the right 40 percent of the whole picture.
    flipped = Variant(flipped=True)
    masks.prepare([(right, PLAIN), (left, PLAIN), (right, flipped)], lambda done, total: None)
    assert masks.get(left, PLAIN).max() == 0
    expected = torch.tensor([0, 0] + [1] * 6).float()
    expected[1] = 0.4  # 20 of 100 px are background: 1.6 latents
    assert torch.allclose(masks.get(right, PLAIN)[0, 3], expected, atol=0.05)
    assert torch.allclose(masks.get(right, flipped)[0, 3], expected.flip(0), atol=0.05)
    # SDXL is told of the crop's size as if the file held nothing else.
    assert right.frame()[:4] == (100, 100, 0, 0)

    def identity(example: Example) -> dict[str, Any]:
        return {"settings": {}, "noise": [], "pictures": {example.name: _facts(example)}, "base": {}}

    said = changes_between(identity(left), identity(right))
    assert [finding.message for finding in said] == ["its crop was changed"]
    unmasked = [replace(example, mask=None) for example in (whole, left)]
    assert [f.message for f in changes_between(*map(identity, unmasked))] == ["its crop was changed"]
    assert changes_between(identity(left), identity(left)) == []
    set_backgrounds(linked, "pictures", ["wide.png"], "white")
    white = wide()
    set_backgrounds(linked, "pictures", ["wide.png"], "black")
    assert len({latents.key(example) for example in (left, white, wide())}) == 3
    said = [changes_between(identity(one), identity(white))[0].message for one in (left, wide())]
    assert said == ["its background was changed"] * 2


def test_a_turned_picture_is_fed_with_its_crop_and_mask_turned_along(
    linked: DatasetStore, components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against numpy's own turn of the file, and of the tensors that are fed without a turn."""
    config = CONFIG.model_copy(update={"resolutions": []})
    set_crops(linked, "pictures", {"wide.png": (72, 4, 136, 68), "clear.png": (10, 20, 74, 84)})
    names = ["wide.png", "clear.png"]
    masks = MaskCache(TensorStore(tmp_path / "masks"), 8)
    latents = LatentCache(TensorStore(tmp_path / "latents"), components, "vae")

    def all_of(cache: str) -> tuple[dict[Any, Any], dict[str, Example]]:
        examples = [e for e in make_examples(linked.scan("pictures").usable, config, "") if e.name in names]
        masks.prepare([(example, PLAIN) for example in examples], lambda done, total: None)
        pixels = fed(components, examples, tmp_path / cache, monkeypatch)
        return {name: image for (name, _), image in pixels.items()}, {example.name: example for example in examples}

    plain, before = all_of("plain")
    file = np.asarray(Image.open(before["wide.png"].path))[4:68, 72:136]
    assert torch.equal(plain["wide.png"], to_pixels(Image.fromarray(file)))
    for degrees in (90, 180, 270):
        turn_pictures(linked, "pictures", names, 90)
        pixels, now = all_of(str(degrees))
        for name in names:
            quarters = -degrees // 90  # numpy turns the other way round
            assert torch.equal(pixels[name], torch.rot90(plain[name], quarters, (1, 2)))
            mask = masks.get(now[name], PLAIN)
            assert torch.equal(mask, torch.rot90(masks.get(before[name], PLAIN), quarters, (1, 2)))
            assert 0 < mask.mean() < 1
            assert latents.key(now[name]) != latents.key(before[name])
        facts = {name: _facts(example) for name, example in now.items()}
        said = changes_between(
            {"settings": {}, "noise": [], "base": {}, "pictures": {n: _facts(e) for n, e in before.items()}},
            {"settings": {}, "noise": [], "base": {}, "pictures": facts},
        )
        assert [finding.message for finding in said] == ["it was turned"] * 2
    turn_pictures(linked, "pictures", names, 90)
    assert all_of("again")[1] == before
