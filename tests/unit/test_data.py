"""From pictures to batches: nothing is paired wrongly, nothing random depends on anything but (seed, step)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_model import make_tiny_model
from tests.tiny_training import SIDE, make_pictures
from trainer.config.data import DataConfig
from trainer.config.objective import ObjectiveConfig
from trainer.data.batches import BatchMaker, BatchOrder
from trainer.data.captions import choose, drop_tags, settled, shuffle_tags, varied, varies
from trainer.data.examples import Example, make_examples, split_examples
from trainer.data.latents import LatentCache, to_pixels
from trainer.data.randomness import generator_for, stream_seed
from trainer.data.tensor_store import TensorStore, content_key
from trainer.data.texts import CachedTexts, LiveTexts
from trainer.data.variants import PLAIN, Variant, Variants
from trainer.dataset.buckets import Bucket, frame
from trainer.dataset.scan import scan_folder
from trainer.errors import DatasetError, ResourceError
from trainer.models.components import Components, load_components
from trainer.models.text import PromptOptions
from trainer.paths import DataFolder

SETTINGS = DataConfig(resolution=SIDE, bucket_step=16, trigger_word="zib", caption_dropout=0.0)


def ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""


def plain(examples: list[Example]) -> list[tuple[Example, Variant]]:
    return [(example, PLAIN) for example in examples]


def both(example: Example) -> list[tuple[Example, Variant]]:
    return [(example, PLAIN), (example, Variant(flipped=True))]


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    folder = make_pictures(tmp_path_factory.mktemp("pictures") / "set", 7)
    return make_examples(scan_folder(folder).usable, SETTINGS, SETTINGS.trigger_word)


def test_examples_have_their_own_caption_with_the_trigger_word(examples: list[Example]) -> None:
    assert [example.name for example in examples] == [f"picture-{index}.png" for index in range(7)]
    assert [example.caption for example in examples] == [f"zib, a red house, number {index}" for index in range(7)]
    assert len({example.bucket for example in examples}) == 2


def test_without_buckets_all_are_square(examples: list[Example]) -> None:
    pictures = scan_folder(examples[0].path.parent).usable
    square = make_examples(pictures, SETTINGS.model_copy(update={"buckets": False}), "zib")
    assert {example.bucket for example in square} == {Bucket(SIDE, SIDE)}


def test_split_holds_out_a_share_and_keeps_at_least_one_to_train(examples: list[Example]) -> None:
    split = split_examples(examples, 0.3, 8, seed=1)
    assert split.held_out
    assert len(split.validation) == 2
    assert not set(split.validation) & set(split.training)
    assert set(split.validation) | set(split.training) == set(examples)
    assert split == split_examples(examples, 0.3, 8, seed=1)
    assert split_examples(examples, 0.3, 8, seed=2) != split
    assert len(split_examples(examples[:2], 0.5, 8, seed=1).training) == 1
    one = split_examples(examples[:1], 0.5, 8, seed=1)
    assert one.training == one.validation == tuple(examples[:1])
    assert not one.held_out
    shared = split_examples(examples, 0.0, 3, seed=1)
    assert len(shared.training) == 7
    assert len(shared.validation) == 3


def test_a_small_concept_is_never_held_out_whole(examples: list[Example]) -> None:
    concepts = [replace(example, concept="small" if index > 4 else "") for index, example in enumerate(examples)]
    for seed in range(60):
        split = split_examples(concepts, 0.4, 8, seed)
        assert len(split.validation) == 3
        assert {example.concept for example in split.training} == {"", "small"}
    alone = [replace(example, concept=str(index)) for index, example in enumerate(examples[:2])]
    assert split_examples(alone, 0.5, 8, seed=1).training == tuple(alone)


def test_an_epoch_shows_every_picture_in_full_batches_of_one_bucket() -> None:
    buckets = [Bucket(64, 64)] * 7 + [Bucket(64, 96)] * 3 + [Bucket(96, 64)]
    order = BatchOrder(buckets, 4, 2, "test", 0)
    assert order.batches_per_epoch == 4 + 2 + 1
    for epoch in range(3):
        batches = [order.batch(epoch * 7 + position) for position in range(7)]
        assert all(len(batch) == 4 for batch in batches)
        assert all(len({buckets[index] for index in batch}) == 1 for batch in batches)
        shown = Counter(index for batch in batches for index in batch)
        assert all(shown[index] >= 2 for index in range(11))
        # 14 and 6 showings leave 2 places of each last batch to be filled; the lone picture fills its batch.
        assert sum(shown[index] for index in range(7)) == 16
        assert sum(shown[index] for index in range(7, 10)) == 8
        assert shown[10] == 4


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    buckets = [Bucket(64, 64)] * 12
    first, second = BatchOrder(buckets, 2, 1, "test", 7), BatchOrder(buckets, 2, 1, "test", 7)
    straight = [first.batch(number) for number in range(18)]
    backwards = [second.batch(number) for number in reversed(range(18))]
    assert straight == backwards[::-1]
    assert straight[:6] != straight[6:12]
    assert straight != [BatchOrder(buckets, 2, 1, "test", 8).batch(number) for number in range(18)]


def make_maker(components: Components, examples: list[Example], cache: Path, settings: DataConfig) -> BatchMaker:
    latents = LatentCache(TensorStore(cache), components, "vae")
    variants = Variants(settings, 0)
    latents.prepare([(example, variant) for example in examples for variant in variants.of(example)], ignore)
    order = BatchOrder([example.bucket for example in examples], 2, 1, "test", 0)
    return BatchMaker(examples, order, latents, settings, ObjectiveConfig())


def test_a_latent_is_never_paired_with_another_pictures_caption(
    components: Components, examples: list[Example], tmp_path: Path
) -> None:
    """Each latent is compared with a fresh encoding of the picture whose caption it came with."""
    truth = {}
    for example in examples:
        height = 96 if int(example.name[8]) % 2 == 0 else 64
        assert Image.open(example.path).height == height
        cache = LatentCache(TensorStore(tmp_path / example.name), components, "vae")
        cache.prepare(both(example), ignore)
        truth[example.caption] = [cache.get(*shown) for shown in both(example)]
    maker = make_maker(components, examples, tmp_path / "all", SETTINGS.model_copy(update={"horizontal_flip": True}))
    seen = set()
    for number in range(40):
        batch = maker.make(number, "instance", 3, number, 0)
        for caption, latent in zip(batch.captions, batch.latents, strict=True):
            deviations = [((latent - mean) / std).abs().mean() for mean, std in truth[caption]]
            # A draw lies about 0.8 deviations from its own mean; from another picture's, many.
            assert min(deviations) < 1.2, caption
            seen.add(caption)
    assert seen == set(truth)


def test_renaming_a_picture_does_not_mix_up_the_cache(
    components: Components, examples: list[Example], tmp_path: Path
) -> None:
    cache = LatentCache(TensorStore(tmp_path), components, "vae")
    cache.prepare(plain(examples), ignore)
    swapped = [replace(examples[0], name=examples[2].name), replace(examples[2], name=examples[0].name)]
    assert cache.prepare(plain(swapped), ignore) == 0
    assert torch.equal(cache.get(swapped[0])[0], cache.get(examples[0])[0])
    assert cache.key(examples[0]) != cache.key(examples[0], Variant(flipped=True))
    assert cache.key(examples[0]) != cache.key(replace(examples[0], bucket=Bucket(32, 32)))
    assert cache.key(examples[0]) != LatentCache(TensorStore(tmp_path), components, "other").key(examples[0])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage"])
def test_damaged_latents_are_made_again(
    components: Components, examples: list[Example], tmp_path: Path, damage: str
) -> None:
    store = TensorStore(tmp_path)
    cache = LatentCache(store, components, "vae")
    assert cache.prepare(plain(examples), ignore) == 7
    path = store.path(cache.key(examples[3]))
    whole = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        path.write_bytes(whole[:-10] if damage == "truncated" else b"garbage" * 9)
    again = LatentCache(store, components, "vae")
    assert again.prepare(plain(examples), ignore) == 1
    assert torch.equal(again.get(examples[3])[0], cache.get(examples[3])[0])
    assert path.read_bytes() == whole


def test_latents_removed_while_training_are_an_error_with_a_remedy(
    components: Components, examples: list[Example], tmp_path: Path
) -> None:
    with pytest.raises(ResourceError, match=r"picture-0\.png"):
        LatentCache(TensorStore(tmp_path), components, "vae").get(examples[0])


def test_a_picture_that_changes_while_preparing_is_refused(
    components: Components, examples: list[Example], tmp_path: Path
) -> None:
    other = tmp_path / "picture.png"
    other.write_bytes(examples[1].path.read_bytes())
    cache = LatentCache(TensorStore(tmp_path / "cache"), components, "vae")
    with pytest.raises(DatasetError, match="changed"):
        cache.prepare(plain([replace(examples[0], path=other)]), ignore)


def test_flipped_latents_are_those_of_the_mirrored_picture(
    components: Components, examples: list[Example], tmp_path: Path
) -> None:
    cache = LatentCache(TensorStore(tmp_path), components, "vae")
    square = next(example for example in examples if example.bucket == Bucket(SIDE, SIDE))
    cache.prepare(both(square), ignore)
    pixels = to_pixels(Image.open(square.path).convert("RGB")).flip(-1)
    expected, _ = components.family.encode_images(components, pixels[None])
    torch.testing.assert_close(cache.get(square, Variant(flipped=True))[0], expected[0])


def test_pixels_span_minus_one_to_one() -> None:
    image = Image.fromarray(np.array([[[0, 128, 255]]], dtype=np.uint8))
    torch.testing.assert_close(to_pixels(image)[:, 0, 0], torch.tensor([-1.0, 128 / 127.5 - 1, 1.0]))


def test_a_batch_is_a_function_of_its_stream(components: Components, examples: list[Example], tmp_path: Path) -> None:
    maker = make_maker(components, examples, tmp_path, SETTINGS)
    torch.manual_seed(1)
    first = maker.make(3, "instance", 0, 4, 0)
    torch.manual_seed(2)
    maker.make(9, "instance", 0, 5, 0)
    again = maker.make(3, "instance", 0, 4, 0)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.timesteps, again.timesteps)
    other = maker.make(3, "instance", 0, 4, 1)
    assert not torch.equal(first.noise, other.noise)
    assert not torch.equal(first.latents, other.latents)


def test_caption_dropout_drops_its_share(components: Components, examples: list[Example], tmp_path: Path) -> None:
    for share, low, high in ((0.0, 0, 0), (0.25, 20, 80), (1.0, 200, 200)):
        settings = SETTINGS.model_copy(update={"caption_dropout": share})
        maker = make_maker(components, examples, tmp_path, settings)
        dropped = sum(caption == "" for number in range(100) for caption in maker.make(number, 0, number).captions)
        assert low <= dropped <= high


def test_tags_are_shuffled_but_for_the_first() -> None:
    generator = torch.Generator().manual_seed(0)
    found = {shuffle_tags("zib, a, b, c", 1, generator) for _ in range(100)}
    assert len(found) == 6
    assert all(caption.startswith("zib, ") and sorted(caption) == sorted("zib, a, b, c") for caption in found)
    assert shuffle_tags("one sentence", 1, generator) == "one sentence"
    assert shuffle_tags("a, b", 5, generator) == "a, b"
    assert shuffle_tags("", 1, generator) == ""


def test_cached_captions_are_what_the_encoder_gives(components: Components, tmp_path: Path) -> None:
    captions = ["a red house", "", "水墨, ink"]
    store = TensorStore(tmp_path)
    for _ in range(2):  # computed, then read
        texts = CachedTexts(store, components, "encoder", PromptOptions(clip_skip=2))
        texts.prepare(captions, ignore)
        with torch.no_grad():
            live = LiveTexts(components, PromptOptions(clip_skip=2)).encode(captions)
        torch.testing.assert_close(texts.encode(captions).states, live.states)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    other = CachedTexts(store, components, "encoder", PromptOptions(clip_skip=1))
    other.prepare(captions, ignore)
    assert not torch.allclose(other.encode(captions).states, texts.encode(captions).states)
    with pytest.raises(KeyError):
        texts.encode(["never prepared"])


def test_cached_captions_of_different_lengths_are_filled_up_like_live_ones(
    components: Components, tmp_path: Path
) -> None:
    captions = ["a red house", "zib robot " * 60]
    options = PromptOptions(max_chunks=2)
    texts = CachedTexts(TensorStore(tmp_path), components, "encoder", options)
    texts.prepare(captions, ignore)
    with torch.no_grad():
        live = LiveTexts(components, options).encode(captions)
    found = texts.encode(captions)
    assert found.states.shape == (2, 2 * 77, 32)
    torch.testing.assert_close(found.states, live.states)
    assert texts.encode(captions[:1]).states.shape == (1, 77, 32)


@pytest.mark.parametrize(
    ("size", "bucket", "expected"),
    [
        ((64, 64), (64, 64), (64, 64, 0, 0, 64, 64)),
        # 200 x 100 px to 64 x 64: resized to 128 x 64, of which 32 are cut off at either side.
        ((200, 100), (64, 64), (100, 200, 0, 32, 64, 64)),
        ((100, 300), (64, 64), (300, 100, 64, 0, 64, 64)),
    ],
)
def test_the_frame_says_how_a_picture_was_cut(
    size: tuple[int, int], bucket: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert frame(*size, Bucket(*bucket)) == expected
    assert frame(*size, Bucket(*bucket), flipped=True) == expected, "a centred cut is the same from both sides"


def test_streams_do_not_collide() -> None:
    assert stream_seed("noise", 1, 23) != stream_seed("noise", 12, 3)
    assert stream_seed("noise", 1) != stream_seed("order", 1)
    assert 0 <= stream_seed("x") < 2**63
    assert torch.equal(torch.rand(3, generator=generator_for("a", 1)), torch.rand(3, generator=generator_for("a", 1)))
    assert content_key(a=1, b="x") == content_key(b="x", a=1) != content_key(a=2, b="x")


def test_wildcards_choose_each_alternative_as_often() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [choose("a {red|blue| green } house, {big|{tiny|huge}} {x}", generator) for _ in range(2000)]
    colours = [sum(f" {colour} " in text for text in found) / 2000 for colour in ("red", "blue", "green")]
    assert colours == pytest.approx([1 / 3] * 3, abs=0.05)
    sizes = [sum(f" {size} x" in text for text in found) / 2000 for size in ("big", "tiny", "huge")]
    assert sizes == pytest.approx([1 / 2, 1 / 4, 1 / 4], abs=0.05)
    assert choose("a {red|blue} {big|{tiny|huge}} house", None) == "a red big house"
    assert choose("braces } { that are none {", generator) == "braces } { that are none {"


def test_dropped_tags_are_a_share_and_the_kept_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [drop_tags("zib, a, b, c", 1, 0.25, generator).split(", ") for _ in range(2000)]
    assert all(tags[0] == "zib" and tags == sorted(tags, key=["zib", "a", "b", "c"].index) for tags in found)
    assert sum(len(tags) - 1 for tags in found) / 6000 == pytest.approx(0.75, abs=0.03)


def test_captions_vary_only_as_the_settings_ask() -> None:
    text = "zib, {red|blue}, a, b, c"

    def shown(**settings: Any) -> set[str]:
        data = DataConfig(**settings)
        return {varied(text, data, torch.Generator().manual_seed(step), "s", step) for step in range(60)}

    assert shown() == {text}
    assert shown(wildcards=True) == {"zib, red, a, b, c", "zib, blue, a, b, c"}
    assert all(len(caption.split(", ")) == 5 for caption in shown(shuffle_tags=True))
    assert {len(caption.split(", ")) for caption in shown(tag_dropout=0.5)} == {1, 2, 3, 4, 5}
    assert settled(text, DataConfig(wildcards=True)) == "zib, red, a, b, c"
    assert settled(text, DataConfig(shuffle_tags=True, tag_dropout=0.5)) == text
    assert [varies(DataConfig(**{name: value})) for name, value in (("wildcards", True), ("tag_dropout", 0.1))] == [
        True
    ] * 2
    assert not varies(DataConfig(caption_dropout=0.5))
    # Shuffling is drawn as it was before the others existed.
    former = torch.randperm(4, generator=torch.Generator().manual_seed(7)).tolist()
    tags = ["{red|blue}", "a", "b", "c"]
    found = varied(text, DataConfig(shuffle_tags=True, keep_tags=1), torch.Generator().manual_seed(7), "x")
    assert found == ", ".join(["zib", *(tags[index] for index in former)])
