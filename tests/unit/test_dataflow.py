"""Masks, several concepts, resolutions, variants and captions: what is shown is what belongs together."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.services.training import TrainingService
from tests.tiny_model import make_tiny_model
from tests.tiny_training import make_pictures, new_run, tiny_settings, train_here
from trainer.cli.commands.train import with_trigger_word
from trainer.config.concept import ConceptConfig
from trainer.config.data import DataConfig
from trainer.config.loading import build_config
from trainer.config.objective import ObjectiveConfig
from trainer.data.batches import BatchMaker, BatchOrder, frames_of
from trainer.data.examples import Concept, Example, at_all_resolutions, bucket_of, concept_examples, make_examples
from trainer.data.latents import LatentCache, to_pixels
from trainer.data.masks import MaskCache
from trainer.data.showings import Showings
from trainer.data.tensor_store import TensorStore
from trainer.data.variants import PLAIN, Variant, Variants
from trainer.dataset.buckets import Bucket, crop_box, fit_picture, frame, room
from trainer.dataset.kohya import require_kohya_folders
from trainer.dataset.masks import MaskFacts
from trainer.dataset.scan import scan_folder
from trainer.dataset.store import DatasetStore
from trainer.errors import ConfigError, DatasetError, Finding, RunError
from trainer.events import CheckpointSaved, Event
from trainer.lora_files.header import read_header
from trainer.models.components import Components, load_components
from trainer.objectives.losses import error
from trainer.objectives.masking import area_weights
from trainer.paths import DataFolder


def ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    return load_components(str(folder), DataFolder(folder.parent), torch.device("cpu"), torch.float32)


def picture(path: Path, size: tuple[int, int] = (64, 64), colour: Any = "red", caption: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.putpixel((0, 0), tuple(path.stem.encode().ljust(3))[:3])  # no two are alike
    image.save(path)
    if caption:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def mask(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size, 0)
    image.paste(255, box)
    image.save(path)
    return path


# --- masks ---------------------------------------------------------------------------------------------------------


def test_masks_of_every_convention_are_found_and_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.png", "d.png", "sub/e.png"):
        picture(tmp_path / name)
    for name in ("a-masklabel.png", "b.mask.png", "masks/c.png", "sub/masks/e.png", "masks/nobody.png", "x.mask.png"):
        mask(tmp_path / name, (64, 64), (0, 0, 32, 64))
    scan = scan_folder(tmp_path)
    found = {facts.name: facts.mask.path.name if facts.mask else None for facts in scan.pictures}
    assert found == {
        "a.png": "a-masklabel.png",
        "b.jpg": "b.mask.png",
        "c.png": "c.png",
        "d.png": None,
        "sub/e.png": "e.png",
    }
    assert [problem.code for problem in scan.problems] == ["mask_orphan"] * 2
    assert "masks/nobody.png" in str([problem.message for problem in scan.problems])


def test_a_folder_of_pictures_named_masks_holds_pictures(tmp_path: Path) -> None:
    for name in ("masks/venice.png", "masks/zorro.png", "portrait.png"):
        picture(tmp_path / name)
    assert len(scan_folder(tmp_path).usable) == 3


def test_a_mask_of_another_shape_or_broken_is_said_and_one_of_another_size_is_scaled(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png", (64, 96))
    mask(tmp_path / "a-masklabel.png", (96, 64), (0, 0, 9, 9))
    (tmp_path / "b-masklabel.png").write_bytes(b"no picture")
    mask(tmp_path / "c-masklabel.png", (32, 48), (0, 0, 9, 9))
    scan = scan_folder(tmp_path)
    codes = {facts.name: [problem.code for problem in facts.problems] for facts in scan.pictures}
    assert codes == {"a.png": ["mask_shape"], "b.png": ["mask_unreadable"], "c.png": []}
    assert [facts.mask is not None for facts in scan.pictures] == [False, False, True]


@pytest.mark.parametrize("offset", [None, (0, 0), (20, 0)])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("scale", [1, 0.5])
def test_a_mask_is_cut_exactly_as_its_picture(
    tmp_path: Path, offset: tuple[int, int] | None, flipped: bool, scale: float
) -> None:
    """The picture is its own mask drawn in white, so that both must come out alike."""
    box = (40, 16, 120, 72)
    image = Image.new("RGB", (200, 100))
    image.paste("white", box)
    image.save(tmp_path / "a.png")
    scaled = [round(edge * scale) for edge in box]
    mask(tmp_path / "a.mask.png", (round(200 * scale), round(100 * scale)), (*scaled,))  # type: ignore[arg-type]
    facts = scan_folder(tmp_path).pictures[0]
    example = make_examples([facts], DataConfig(resolution=64, buckets=False, masks="files"), "")[0]
    variant = Variant(flipped, offset)
    cache = MaskCache(TensorStore(tmp_path / "cache"), 4)
    cache.prepare([(example, variant)], ignore)
    found = cache.get(example, variant)
    shown = to_pixels(variant.apply(Image.open(example.path).convert("RGB"), example))[:1]
    expected = torch.nn.functional.avg_pool2d(shown / 2 + 0.5, 4)
    assert found.shape == (1, 16, 16)
    assert 0.1 < float(found.mean()) < 0.9
    # A mask of half the size has its edges at half the places.
    torch.testing.assert_close(found, expected, atol=0.08 if scale == 1 else 0.15, rtol=0)
    again = MaskCache(TensorStore(tmp_path / "cache"), 4)
    again.prepare([(example, variant)], ignore)
    assert torch.equal(again.get(example, variant), found)
    assert bool((cache.get(replace(example, mask=None), variant) == 1).all())


def test_a_mask_is_read_by_its_alpha_channel_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((9, 9, 9, 255), (0, 0, 32, 64))
    image.save(tmp_path / "cut-out.png")
    data = DataConfig(resolution=64, masks="alpha")
    (example,) = make_examples(scan_folder(tmp_path).usable, data, "")
    cache = MaskCache(TensorStore(tmp_path / "cache"), 32)
    cache.prepare([(example, PLAIN)], ignore)
    assert cache.get(example, PLAIN).tolist() == [[[1, 0], [1, 0]]]
    assert make_examples(scan_folder(tmp_path).usable, DataConfig(resolution=64, masks="files"), "")[0].mask is None
    changed = replace(example, mask=MaskFacts(example.path, "0" * 64, 64, 64))
    with pytest.raises(DatasetError, match="mask was changed"):
        cache.prepare([(changed, PLAIN)], ignore)


@pytest.mark.parametrize("loss", ["l2", "huber", "smooth_l1"])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_outside_the_mask_the_gradient_is_the_floor(loss: Any, floor: float) -> None:
    objective = ObjectiveConfig(loss=loss)
    generator = torch.Generator().manual_seed(0)
    goal = torch.randn(2, 4, 8, 8, generator=generator)
    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, 2:6, 3:7] = 1
    times, alphas = torch.tensor([1, 3]), torch.linspace(0.9, 0.1, 5)

    def gradient(area: torch.Tensor | None) -> torch.Tensor:
        prediction = torch.zeros_like(goal, requires_grad=True)
        error(objective, prediction, goal, times, alphas, area).sum().backward()
        assert prediction.grad is not None
        return prediction.grad

    plain, masked = gradient(None), gradient(area_weights(masks, floor, normalised=False))
    inside = masks.bool().expand_as(goal)
    assert torch.equal(masked[inside], plain[inside])
    torch.testing.assert_close(masked[~inside], floor * plain[~inside])
    assert bool(plain[~inside].abs().min() > 0)


def test_normalised_masks_count_as_much_as_whole_pictures() -> None:
    masks = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    masks[2] = 0
    found = area_weights(masks, 0.2, normalised=True)
    # OneTrainer: losses * clamp(mask, floor, 1), divided by the mean of that.
    clamped = np.clip(masks.numpy(), 0.2, 1)
    np.testing.assert_allclose(found.numpy(), clamped / clamped.mean(axis=(1, 2, 3), keepdims=True), rtol=1e-5)
    torch.testing.assert_close(found.mean(dim=(1, 2, 3)), torch.ones(3))
    assert bool((area_weights(masks, 0.0, normalised=True)[2] == 0).all())


# --- concepts ------------------------------------------------------------------------------------------------------


def example(index: int, concept: str, bucket: Bucket, repeats: int = 1) -> Example:
    return Example(f"{concept}{index}", Path(), str(index), "", bucket, (64, 64), concept=concept, repeats=repeats)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3)), min_size=2, max_size=4))
def test_balanced_concepts_have_equal_shares_and_epochs_one_length(sizes: list[tuple[int, int, int]]) -> None:
    tall, wide = Bucket(64, 96), Bucket(96, 64)
    examples = [
        example(index, str(concept), tall if index < num_tall else wide, repeats)
        for concept, (num_tall, num_wide, repeats) in enumerate(sizes)
        for index in range(num_tall + num_wide)
    ]
    most = max(num_tall + num_wide for num_tall, num_wide, _ in sizes)
    shown = Showings(examples, balanced=True)
    total: Counter[int] = Counter()
    for epoch in range(6):
        counts = shown.counts(epoch)
        for concept, (_, _, repeats) in enumerate(sizes):
            of_concept = [count for count, one in zip(counts, examples, strict=True) if one.concept == str(concept)]
            assert sum(of_concept) == most * repeats
            assert min(of_concept) >= 1
        first = shown.counts(0)
        for bucket in (tall, wide):
            assert sum(n for n, one in zip(counts, examples, strict=True) if one.bucket == bucket) == sum(
                n for n, one in zip(first, examples, strict=True) if one.bucket == bucket
            )
        total.update(dict(enumerate(counts)))
    # Those that are shown once more take turns.
    for concept in range(len(sizes)):
        for bucket in (tall, wide):
            mine = [total[at] for at, e in enumerate(examples) if e.concept == str(concept) and e.bucket == bucket]
            assert max(mine) - min(mine) <= 1


def test_an_epoch_shows_each_concepts_pictures_as_often_as_it_repeats() -> None:
    square = Bucket(64, 64)
    examples = [example(index, "a", square, 3) for index in range(4)] + [example(9, "b", Bucket(96, 64), 2)]
    order = BatchOrder([each.bucket for each in examples], 2, Showings(examples), "test", 1)
    batches = [order.batch(number) for number in range(order.batches_per_epoch)]
    assert Counter(index for batch in batches for index in batch) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 2}
    assert all(len({examples[index].bucket for index in batch}) == 1 for batch in batches)
    # Equal repeats are the order that a number gives, so that older runs resume on it.
    alike = [example(index, "a", square, 2) for index in range(5)]
    buckets = [square] * 5
    plain, shown = BatchOrder(buckets, 2, 2, "s", 7), BatchOrder(buckets, 2, Showings(alike), "s", 7)
    assert [plain.batch(number) for number in range(20)] == [shown.batch(number) for number in range(20)]


def test_concepts_have_words_of_their_own(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a tower")
    picture(tmp_path / "b.png", colour="blue")
    words = ConceptConfig(dataset="x", trigger_word="kol", instance_prompt="a cat", repeats=2, weight=0.5)
    found = concept_examples(Concept("cats", scan_folder(tmp_path).usable, words), DataConfig(trigger_word="zib"))
    assert [(each.name, each.caption) for each in found] == [
        ("cats: a.png", "kol, a tower"),
        ("cats: b.png", "kol, a cat"),
    ]
    assert {(each.concept, each.repeats, each.weight) for each in found} == {("cats", 2, 0.5)}


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"concepts": ["robot; trigr=zib"]}, "data.concepts.0.trigr"),
        ({"concepts": ["robot; repeats"]}, "data.concepts.0"),
        ({"concepts": [{"dataset": "a"}]}, "data.concepts.0.dataset"),
        ({"concepts": [{"dataset": "b", "use_captions": False}]}, "data.concepts.0.instance_prompt"),
        ({"concepts": ["b; class_prompt=a cat"]}, "data.prior.class_prompt"),
        ({"balance": "concepts"}, "data.balance"),
        ({"prior": {"dataset": "b"}}, "data.prior.class_prompt"),
        ({"prior": {"dataset": "b", "class_prompt": "c", "source": "base_prediction"}}, "data.prior.dataset"),
        ({"resolutions": [512]}, "data.resolutions"),
        ({"resolutions": ["48"]}, "data.bucket_step"),
        ({"resolutions": ["50"]}, "data.resolutions.0"),
    ],
)
def test_data_that_does_not_go_together_is_refused_at_its_field(data: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config({"data": {"dataset": "a", **data}})
    assert [finding.where for finding in caught.value.findings] == [path]


def test_a_concept_is_written_as_a_text_or_a_table() -> None:
    found = build_config({"data": {"concepts": ["ink wash; trigger_word=zsy; weight=0.5", {"dataset": "b"}]}})
    assert found.data.concepts[0] == ConceptConfig(dataset="ink wash", trigger_word="zsy", weight=0.5)
    assert found.data.concepts[1] == ConceptConfig(dataset="b")


def test_kohyas_folders_become_concepts(tmp_path: Path) -> None:
    picture(tmp_path / "10_zib robot" / "a.png")
    picture(tmp_path / "5_cat" / "b.png")
    (tmp_path / "3_empty").mkdir()
    picture(tmp_path / "other" / "c.png")
    found = [folder.settings() for folder in require_kohya_folders(tmp_path)]
    assert found == [
        {"dataset": str(tmp_path / "10_zib robot"), "repeats": 10, "instance_prompt": "zib robot"},
        {"dataset": str(tmp_path / "5_cat"), "repeats": 5, "instance_prompt": "cat"},
    ]
    assert TrainingService(DataFolder(tmp_path / "data")).concept_values(str(tmp_path)) == found
    with pytest.raises(DatasetError, match="10_zib robot"):
        require_kohya_folders(tmp_path / "other")


def test_the_command_line_takes_concepts_with_the_trigger_words_of_their_data_sets(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    picture(tmp_path / "p" / "a.png")
    store = DatasetStore(data)
    store.create_from("robots", [tmp_path / "p"], trigger_word="zib")
    store.create_from("cats", [tmp_path / "p"], trigger_word="kol")
    given = {"data": {"dataset": "robots", "concepts": ["cats; repeats=2"]}}
    found = build_config(with_trigger_word(given, data)).data
    assert (found.trigger_word, found.concepts[0].trigger_word, found.concepts[0].repeats) == ("zib", "kol", 2)
    own = {"data": {"dataset": "robots", "trigger_word": "", "concepts": [{"dataset": "cats", "trigger_word": "x"}]}}
    found = build_config(with_trigger_word(own, data)).data
    assert (found.trigger_word, found.concepts[0].trigger_word) == ("", "x")


@pytest.mark.parametrize("form", ["folder", "files"])
def test_masks_come_in_with_their_pictures_under_the_names_that_those_get(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    picture(source / "a.png", caption="one")
    mask(source / "a.mask.png", (64, 64), (0, 0, 32, 64))
    picture(source / "b.png", colour="blue")
    if form == "folder":
        mask(source / "masks" / "b.png", (64, 64), (0, 0, 64, 32))
    store = DatasetStore(DataFolder(tmp_path / "data"))
    picture(tmp_path / "first" / "a.png", colour="green", caption="green")
    store.create_from("set", [tmp_path / "first"])
    report = store.add_files("set", [source] if form == "folder" else sorted(source.iterdir()))
    assert sorted(report.added) == ["a 2.png", "b.png"]
    assert report.num_masks == (2 if form == "folder" else 1)
    found = {facts.name: facts.mask.path.name if facts.mask else "" for facts in store.scan("set").pictures}
    assert found == {
        "a.png": "",
        "a 2.png": "a 2-masklabel.png",
        "b.png": "b-masklabel.png" if form == "folder" else "",
    }
    # A mask that comes later finds its picture; one that is there already stays.
    late = mask(tmp_path / "late" / "a-masklabel.png", (64, 64), (0, 0, 9, 9))
    assert store.add_files("set", [late]).num_masks == 1
    before = (store.get("set").folder / "a-masklabel.png").read_bytes()
    again = store.add_files("set", [mask(tmp_path / "later" / "a-masklabel.png", (64, 64), (0, 0, 64, 64))])
    assert [finding.message for finding in again.left_out] == ["is a mask, and a.png has one already"]
    assert (store.get("set").folder / "a-masklabel.png").read_bytes() == before
    assert store.get("set").num_pictures == 3
    store.remove_pictures("set", ["a.png"])
    (trash,) = store.discard_left_out("set")
    assert [path.name for path in sorted(trash.parent.glob("a*"))] == ["a-masklabel.png", "a.png", "a.txt"]


# --- sizes, cuts and colours ---------------------------------------------------------------------------------------


def test_pictures_are_shown_at_every_resolution_in_buckets_of_it() -> None:
    data = DataConfig(resolution=512, resolutions=[768, 256])
    one = replace(example(0, "", bucket_of((600, 900), data, 512)), size=(600, 900))
    found = [each.bucket for each in at_all_resolutions([one], data)]
    assert found == [Bucket(384, 640), Bucket(640, 896), Bucket(192, 320)]
    small = data.model_copy(update={"bucket_no_upscale": True})
    assert [each.bucket for each in at_all_resolutions([one], small)] == [*found[:1], Bucket(576, 896), *found[2:]]


@settings(deadline=None)
@given(st.integers(32, 3000), st.integers(32, 3000), st.sampled_from([(512, 64), (256, 32), (1024, 64)]), st.booleans())
def test_without_upscaling_nothing_is_enlarged(width: int, height: int, size: tuple[int, int], buckets: bool) -> None:
    resolution, step = size
    data = DataConfig(resolution=resolution, bucket_step=step, buckets=buckets, bucket_no_upscale=True)
    bucket = bucket_of((width, height), data, resolution)
    assert bucket.width <= max(width, step)
    assert bucket.height <= max(height, step)
    assert bucket.width % step == bucket.height % step == 0
    assert bucket.width * bucket.height <= resolution**2
    assert buckets or bucket.width == bucket.height


@settings(deadline=None)
@given(st.integers(64, 2000), st.integers(64, 2000), st.booleans(), st.floats(0, 1))
def test_the_frame_of_a_variant_is_what_diffusers_tells_sdxl(width: int, height: int, flipped: bool, at: float) -> None:
    """`train_text_to_image_lora_sdxl.py`: resize, mirror, cut at (y1, x1) of the mirrored picture."""
    bucket = Bucket(64, 64)
    widest = room(width, height, bucket)
    offset = (round(widest[0] * at), round(widest[1] * at))
    resized = widest[0] + bucket.width
    x1 = resized - offset[0] - bucket.width if flipped else offset[0]
    found = frame(width, height, bucket, flipped=flipped, offset=offset)
    assert found[:2] == (height, width)
    assert found[4:] == (64, 64)
    # The resized picture may be a fraction of a pixel wider than whole pixels say.
    assert abs(found[2] - offset[1]) <= 0
    assert abs(found[3] - x1) <= (1 if flipped else 0)
    left, top, right, bottom = crop_box(width, height, bucket, offset)
    assert left >= 0
    assert top >= 0
    assert right <= width + 1e-6
    assert bottom <= height + 1e-6


def test_a_cut_at_an_offset_is_that_part_of_the_resized_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 160, 3), dtype=np.uint8)
    image, bucket = Image.fromarray(noise), Bucket(64, 64)
    assert room(160, 64, bucket) == (96, 0)
    found = np.asarray(fit_picture(image, bucket, (31, 0)))
    assert np.array_equal(found, noise[:, 31:95])


def test_variants_are_a_few_follow_from_the_seed_and_are_all_drawn() -> None:
    data = DataConfig(resolution=64, buckets=False, crop_variants=3, colour_variants=2, horizontal_flip=True)
    one = replace(example(0, "", Bucket(64, 64)), size=(500, 100))
    variants = Variants(data, 7)
    every = variants.of(one)
    assert len(every) == 3 * 3 * 2
    assert every == Variants(data, 7).of(one) != Variants(data, 8).of(one)
    assert set(every) != set(variants.of(replace(one, sha256="other")))
    drawn = Counter(variants.draw(one, bool(number % 2), "s", number) for number in range(900))
    assert set(drawn) == set(every)
    assert min(drawn.values()) > 20
    square = replace(one, size=(100, 100))
    assert len(variants.of(square)) == 3 * 2
    assert Variants(DataConfig(), 7).of(one) == (PLAIN,)
    assert all(abs(factor - 1) <= 0.1 for variant in every if variant.jitter for factor in variant.jitter)


def test_every_variant_has_an_address_of_its_own_and_latents_of_what_it_shows(
    components: Components, tmp_path: Path
) -> None:
    make_pictures(tmp_path / "set", 1)
    data = DataConfig(resolution=64, buckets=False, crop_variants=2, colour_variants=1, horizontal_flip=True)
    (one,) = make_examples(scan_folder(tmp_path / "set").usable, data, "")
    cache = LatentCache(TensorStore(tmp_path / "cache"), components, "vae")
    every = Variants(data, 0).of(one)
    assert cache.prepare([(one, variant) for variant in every], ignore) == len(every) == 8
    assert len({cache.key(one, variant) for variant in (*every, PLAIN)}) == 9
    source = Image.open(one.path).convert("RGB")
    for variant in every:
        expected, _ = components.family.encode_images(components, to_pixels(variant.apply(source, one))[None])
        torch.testing.assert_close(cache.get(one, variant)[0], expected[0])
    again = LatentCache(TensorStore(tmp_path / "cache"), components, "vae")
    assert again.prepare([(one, variant) for variant in every], ignore) == 0


# --- captions ------------------------------------------------------------------------------------------------------


def test_several_captions_are_lines_or_a_list(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", caption="a tower\n\n  a tall house \na tower\n")
    picture(tmp_path / "b.png")
    (tmp_path / "b.json").write_text(json.dumps(["ink", "a lake, ink"]), encoding="utf-8")
    picture(tmp_path / "c.png")
    (tmp_path / "c.json").write_text(json.dumps({"captions": ["one"], "score": 3}), encoding="utf-8")
    picture(tmp_path / "d.png")
    (tmp_path / "d.json").write_text(json.dumps({"score": 3}), encoding="utf-8")
    facts = scan_folder(tmp_path).pictures
    assert [each.captions for each in facts] == [("a tower", "a tall house"), ("ink", "a lake, ink"), ("one",), ()]
    assert [each.caption for each in facts] == ["a tower a tall house a tower", "ink", "one", None]
    assert [problem.code for problem in facts[3].problems] == ["caption_json"]
    several = make_examples(facts, DataConfig(several_captions=True), "zib")
    assert several[0].all_captions == ("zib, a tower", "zib, a tall house")
    assert several[0].caption == "zib, a tower"
    assert several[3].all_captions == ("zib",)
    assert make_examples(facts, DataConfig(), "zib")[0].all_captions == ("zib, a tower a tall house a tower",)


def test_a_data_sets_own_records_are_no_captions(tmp_path: Path) -> None:
    for stem in ("dataset", "captions"):
        picture(tmp_path / f"{stem}.png")
        (tmp_path / f"{stem}.json").write_text('["a fault"]', encoding="utf-8")
    assert [facts.caption for facts in scan_folder(tmp_path).pictures] == [None, None]


# --- what is shown belongs together --------------------------------------------------------------------------------


def test_latents_and_captions_belong_together_whatever_is_mixed(components: Components, tmp_path: Path) -> None:
    """Plain colours, which no cut or mirror changes: each latent is compared with that of its caption's colour."""
    generator = np.random.default_rng(5)
    colours: dict[str, tuple[int, int, int]] = {}
    data = DataConfig(
        resolution=64,
        resolutions=[32],
        bucket_step=16,
        several_captions=True,
        horizontal_flip=True,
        crop_variants=2,
        caption_dropout=0.0,
        masks="files",
    )

    def paint(path: Path, size: tuple[int, int], word: str) -> None:
        colours[word] = tuple(int(value) for value in generator.integers(0, 255, 3))  # type: ignore[assignment]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, colours[word]).save(path)
        path.with_suffix(".txt").write_text(f"{word}, first\n{word}, second", encoding="utf-8")
        grey = 40 + 10 * len(colours)
        Image.new("L", size, grey).save(path.with_name(f"{path.stem}-masklabel.png"))
        colours[f"{word} grey"] = (grey, grey, grey)

    def read() -> list[Example]:
        concepts = [
            Concept(label, scan_folder(tmp_path / folder).usable, ConceptConfig(dataset=folder, repeats=repeats))
            for label, folder, repeats in (("", "one", 1), ("two", "two", 3))
        ]
        return [each for concept in concepts for each in concept_examples(concept, data)]

    # Equal names in both folders, and in a folder inside.
    for index, folder in enumerate(("one", "two", "one/inside")):
        paint(tmp_path / folder / "a.png", (64, 64), f"square{index}")
        paint(tmp_path / folder / "b.png", (64, 120), f"tall{index}")

    def check(examples: list[Example]) -> set[str]:
        shown = at_all_resolutions(examples, data)
        cache, masks = (
            LatentCache(TensorStore(tmp_path / "c"), components, "v"),
            MaskCache(TensorStore(tmp_path / "c"), 4),
        )
        every = [(one, variant) for one in shown for variant in Variants(data, 3).of(one)]
        cache.prepare(every, ignore)
        masks.prepare(every, ignore)
        order = BatchOrder([one.bucket for one in shown], 3, Showings(shown, balanced=True), "order", 3)
        maker = BatchMaker(shown, order, cache, data, ObjectiveConfig(mask_floor=0), seed=3, masks=masks)
        seen = set()
        for number in range(4 * order.batches_per_epoch):
            batch = maker.make(number, "instance", 3, number, 0)
            assert batch.area is not None
            height, width = (side * 4 for side in batch.latents.shape[-2:])
            for caption, latents, area in zip(batch.captions, batch.latents, batch.area, strict=True):
                word = caption.partition(",")[0]
                mean, std = truth(word, width, height)
                assert ((latents - mean) / std).abs().mean() < 1.2, caption
                torch.testing.assert_close(area, torch.full_like(area, colours[f"{word} grey"][0] / 255))
                seen.add((caption, width, height))
        return {caption for caption, _, _ in seen}

    known: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}

    def truth(word: str, width: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
        key = (colours[word], width, height)
        if key not in known:
            pixels = to_pixels(Image.new("RGB", (width, height), colours[word]))
            mean, std = components.family.encode_images(components, pixels[None])
            known[key] = (mean[0], std[0])
        return known[key]

    words = [f"{shape}{index}" for shape in ("square", "tall") for index in range(3)]
    every = {f"{word}, {which}" for word in words for which in ("first", "second")}
    assert check(read()) == every
    # Another picture under the same name, and two that change places.
    paint(tmp_path / "one" / "a.png", (64, 64), "new")
    (tmp_path / "one" / "b.png").rename(tmp_path / "swap.png")
    (tmp_path / "two" / "b.png").rename(tmp_path / "one" / "b.png")
    (tmp_path / "swap.png").rename(tmp_path / "two" / "b.png")
    for suffix in (".txt", "-masklabel.png"):
        (tmp_path / "one" / f"b{suffix}").rename(tmp_path / "swap")
        (tmp_path / "two" / f"b{suffix}").rename(tmp_path / "one" / f"b{suffix}")
        (tmp_path / "swap").rename(tmp_path / "two" / f"b{suffix}")
    assert check(read()) == {text.replace("square0", "new") for text in every}


def test_frames_follow_the_variant() -> None:
    one = replace(example(0, "", Bucket(64, 64)), size=(160, 64))
    found = frames_of([(one, Variant(offset=(31, 0))), (one, Variant(flipped=True, offset=(31, 0)))])
    assert found.tolist() == [[64, 160, 0, 31, 64, 64], [64, 160, 0, 65, 64, 64]]


# --- a whole run ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process dies here."""


def test_a_run_on_all_of_it_resumes_to_the_bit_and_says_what_it_learned_from(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model")
    first, second = make_pictures(tmp_path / "robots", 3), make_pictures(tmp_path / "cats", 2, seed=1)
    own = make_pictures(tmp_path / "class", 2, seed=2)
    for folder in (first, second):
        mask(folder / "picture-0-masklabel.png", (64, 96), (0, 0, 32, 96))
    (second / "picture-1.txt").write_text("a cat\na sleeping cat", encoding="utf-8")
    config = tiny_settings(
        model,
        first,
        {
            "data": {
                "resolution": 32,
                "resolutions": [48],
                "repeats": 2,
                "concepts": [
                    {"dataset": str(second), "trigger_word": "kol", "weight": 0.5, "class_prompt": "a cat"},
                ],
                "balance": "concepts",
                "masks": "files",
                "several_captions": True,
                "crop_variants": 2,
                "colour_variants": 1,
                "horizontal_flip": True,
                "prior": {"class_prompt": "a house", "dataset": str(own), "num_class_images": 1},
            },
            "objective": {"mask_normalised": True},
            "training": {"steps": 4},
        },
    )
    data = DataFolder(tmp_path / "data")
    warnings: list[str] = []
    straight = train_here(new_run(data, config), lambda event: warnings.append(getattr(event, "message", "")))
    assert "3 of 5 pictures have no mask" in "\n".join(warnings)

    # Class pictures of the first concept are the user's, those of the second are made.
    assert len(list((data.cache / "class_images").rglob("*.png"))) == 1

    def die(event: Event) -> None:
        if isinstance(event, CheckpointSaved) and event.step == 2:
            raise Killed

    run = new_run(data, config)
    with pytest.raises(Killed):
        train_here(run, die)
    resumed = train_here(run)
    weights = [Path(result["lora"]).read_bytes() for result in (straight, resumed)]
    sizes = [int.from_bytes(each[:8], "little") + 8 for each in weights]
    assert weights[0][sizes[0] :] == weights[1][sizes[1] :]
    metadata, _ = read_header(Path(straight["lora"]))
    assert json.loads(metadata["ss_dataset_dirs"]) == {
        "robots": {"n_repeats": 2, "img_count": 3},
        "cats": {"n_repeats": 1, "img_count": 2},
    }
    frequency = json.loads(metadata["ss_tag_frequency"])
    assert frequency["robots"]["zib"] == 3
    assert frequency["cats"] == {"kol": 3, "a red house": 1, "number 0": 1, "a cat": 1, "a sleeping cat": 1}
    assert metadata["modelspec.trigger_phrase"] == "zib, kol"
    assert str(tmp_path) not in "".join(metadata.values())
    # What the weights follow from has changed: a mask.
    mask(second / "picture-0-masklabel.png", (64, 96), (0, 0, 48, 96))
    with pytest.raises(RunError) as caught:
        train_here(run)
    assert list(caught.value.findings) == [Finding("cats: picture-0.png", "its mask was changed")]


def test_masks_that_cannot_be_used_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "set", 2)
    config = tiny_settings(tmp_path / "no model", pictures, {"data": {"masks": "files"}})
    with pytest.raises(DatasetError, match="no picture has a mask"):
        train_here(new_run(DataFolder(tmp_path / "data"), config))
    mask(pictures / "picture-0-masklabel.png", (96, 64), (0, 0, 9, 9))
    with pytest.raises(DatasetError) as caught:
        train_here(new_run(DataFolder(tmp_path / "data"), config))
    assert [finding.where for finding in caught.value.findings] == ["picture-0.png"]
