"""Words with vectors of their own: what the model reads, how they are trained, and what is written and read of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny_model import TEXT_WIDTH, make_tiny_model
from tests.tiny_training import make_pictures, new_run, tiny_settings
from trainer.adapters.method import build_method
from trainer.config.adapter import AdapterConfig, UnetLora
from trainer.config.embedding import EmbeddingSettings
from trainer.config.loading import build_config, merge, nest
from trainer.config.optimizer import OPTIMIZERS
from trainer.data.texts import LiveTexts
from trainer.errors import ConfigError, LoraFileError
from trainer.jobs import JobContext
from trainer.library import get_lora, import_lora, list_loras, named_embeddings
from trainer.lora_files.conversion import convert_lora
from trainer.lora_files.embeddings import embedding_from, read_embedding, write_embedding
from trainer.lora_files.file import LoraModule, read_lora, write_lora
from trainer.lora_files.inspect import describe_lora, inspect_lora
from trainer.lora_files.targets import check_file
from trainer.lora_tools.merge import MergeInput, merge_loras
from trainer.models.components import Components, load_components
from trainer.models.text import PromptOptions, to_chunks
from trainer.models.words import LearnedWord, LearnedWords, cross_attentions, start_vectors, token_table
from trainer.paths import DataFolder
from trainer.sampling.schedule import StackSchedule, Way
from trainer.sampling.stack import LoraStack, StackEntry
from trainer.training.base_prediction import start_of
from trainer.training.setup import _accelerate, set_up
from trainer.training.state import TrainParts
from trainer.training.step import FiniteGuard, rate_at, train_step
from trainer.training.validation import validation_loss

WEIGHTED = PromptOptions(has_weights=True)
STEPS = 8  # two at rest, two together, four after


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Components]:
    folder = tmp_path_factory.mktemp("models")
    models = {family: make_tiny_model(folder / family, family=family) for family in ("sd1", "sdxl")}
    cpu, data = torch.device("cpu"), DataFolder(folder / "data")
    return {family: load_components(str(path), data, cpu, torch.float32) for family, path in models.items()}


@pytest.fixture(params=["sd1", "sdxl"])
def components(loaded: dict[str, Components], request: pytest.FixtureRequest) -> Components:
    return replace(loaded[request.param], words=LearnedWords())


def random_word(components: Components, count: int = 2, layers: int = 0, name: str = "zib") -> LearnedWord:
    generator = torch.Generator().manual_seed(count + layers)
    shape = (layers, count) if layers else (count,)
    vectors = {
        part: torch.randn(*shape, token_table(encoder).embedding_dim, generator=generator)
        for part, encoder in components.text_encoders.items()
    }
    return LearnedWord(name, vectors)


@torch.no_grad()
def encode(components: Components, *prompts: str, options: PromptOptions = WEIGHTED) -> torch.Tensor:
    return components.family.encode_prompts(components, prompts, options).states


# --- what the model reads ------------------------------------------------------------------------------------------


def test_vectors_of_known_tokens_read_as_those_tokens(components: Components) -> None:
    """The reference is the text encoder itself: a word made of the vectors of `red house` is `red house`."""
    usual = components.family.encode_prompts(components, ["a red house, (red house:1.3) tree"], WEIGHTED)
    vectors = {
        part: start_vectors(
            components.tokenizers[part]("red house", add_special_tokens=False).input_ids, token_table(encoder).weight, 2
        )
        for part, encoder in components.text_encoders.items()
    }
    components.words.set("stack", [LearnedWord("Zib robot", vectors)])
    found = components.family.encode_prompts(components, ["a zib robot, (embedding:ZIB ROBOT:1.3) tree"], WEIGHTED)
    assert torch.equal(found.states, usual.states)
    assert (found.pooled is None) == (usual.pooled is None)
    if found.pooled is not None and usual.pooled is not None:
        assert torch.equal(found.pooled, usual.pooled)
    assert not torch.equal(encode(components, "a red zib robots"), encode(components, "a red red houses")), (
        "only whole words are replaced"
    )


def test_vectors_of_a_word_stay_in_one_chunk(components: Components) -> None:
    components.words.set("stack", [random_word(components, 4)])
    words = components.words.of("text_encoder")
    chunks = to_chunks(components.tokenizer, 77, ["red " * 73 + "zib blue"], WEIGHTED, words)
    assert chunks.ids.shape == (1, 2, 77)
    assert (chunks.rows[0, 0] == -1).all()
    assert chunks.rows[0, 1, :6].tolist() == [-1, 0, 1, 2, 3, -1]
    assert chunks.ids[0, 1, 6] == components.tokenizer.eos_token_id


def test_each_layer_attends_to_its_own_vectors(components: Components) -> None:
    """With one layer's vectors changed, the states that only that layer sees change, and the picture with them."""
    layers = len(cross_attentions(components.unet))
    word = random_word(components, 2, layers)
    components.words.set("stack", [word])
    states = encode(components, "a zib", "a red house")
    assert states.shape[:2] == (2, layers)
    alone = {part: vectors[1] for part, vectors in word.vectors.items()}
    components.words.set("stack", [LearnedWord("zib", alone)])
    torch.testing.assert_close(encode(components, "a zib", "a red house"), states[:, 1])

    def predict(words: LearnedWord) -> torch.Tensor:
        components.words.set("stack", [words])
        told = components.family.encode_prompts(components, ["a zib"]).framed(torch.tensor([[32.0, 32, 0, 0, 32, 32]]))
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return components.family.predict(components, latents, torch.tensor([500]), told)

    same = {part: vectors.expand(layers, -1, -1).clone() for part, vectors in alone.items()}
    if components.family.name == "sd1":
        torch.testing.assert_close(predict(LearnedWord("zib", same)), predict(LearnedWord("zib", alone)))
    plain = predict(LearnedWord("zib", same))
    for layer in range(layers):
        changed = {part: vectors.clone() for part, vectors in same.items()}
        for vectors in changed.values():
            vectors[layer] *= -1  # a shift of all alike is what a layer norm takes out
        assert not torch.allclose(predict(LearnedWord("zib", changed)), plain)
    components.words.set("stack", [])
    assert encode(components, "a zib").ndim == 3


def test_the_first_place_that_has_a_word_is_heard(components: Components) -> None:
    stack, library = random_word(components, 2), random_word(components, 3)
    components.words.set("library", [library])
    assert components.words.words["zib"] is library
    components.words.set("stack", [stack])
    assert components.words.words["zib"] is stack


# --- training ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainParts, dict[str, Any]]:
    """A run that is set up with a LoRA and two vectors."""
    folder = tmp_path_factory.mktemp("learning")
    model, pictures = make_tiny_model(folder / "model"), make_pictures(folder / "pictures", 2)
    settings = tiny_settings(
        model,
        pictures,
        {
            "data": {"resolution": 32, "caption_dropout": 0.0},
            "adapter": {"embedding": {"num_vectors": 2, "init_text": "red house"}},
            "optimizer": {"unet_learning_rate": 1e-2, "embedding_learning_rate": 2e-2},
            "schedule": {"kind": "constant", "warmup_share": 0.0},
            "training": {"steps": STEPS},
        },
    )
    made = new_run(DataFolder(folder / "data"), settings)
    return set_up(JobContext(made, lambda event: None), build_config(settings), made.data_folder()), settings


def changed(run: tuple[TrainParts, dict[str, Any]], *layers: dict[str, Any]) -> TrainParts:
    """The same run with other settings and a new optimizer."""
    parts, settings = run
    config = build_config(merge(settings, *layers))
    accelerator, optimizer = _accelerate(config, parts.adapter, parts.device, torch.float32)
    return replace(parts, config=config, accelerator=accelerator, optimizer=optimizer)


def test_captions_of_a_word_that_learns_are_not_cached(run: tuple[TrainParts, dict[str, Any]]) -> None:
    assert isinstance(run[0].texts, LiveTexts)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not OPTIMIZERS[name].requires[0]])
def test_every_optimizer_learns_the_word_and_nothing_else(run: tuple[TrainParts, dict[str, Any]], name: str) -> None:
    """With the LoRA at rest only the vectors move; the loss falls; the table of tokens is what it was, to the bit."""
    rate = {"lion": 5e-3}.get(name, 5e-2)
    own = {"initial": 1e-2} if name == "prodigy" else {}
    optimizer = {"name": name, "unet_learning_rate": 0.0, "embedding_learning_rate": rate, "prodigy": own}
    parts = changed(run, {"optimizer": optimizer})
    start, tables = start_of(parts.adapter), token_table(parts.components.text_encoder).weight.clone()
    first = validation_loss(parts)
    guard = FiniteGuard(deferred=False)
    for step in range(1, STEPS // 2 + 1):
        train_step(parts, step, guard)
    last, end = validation_loss(parts), start_of(parts.adapter)
    parts.adapter.load_state_dict(start)
    assert last < first
    assert [path for path in start if not torch.equal(start[path], end[path])] == ["embedding.text_encoder"]
    assert torch.equal(token_table(parts.components.text_encoder).weight, tables)


def test_phases_let_one_learn_and_the_other_rest(run: tuple[TrainParts, dict[str, Any]]) -> None:
    phases = {"phase": "first", "first_share": 0.25, "stop_share": 0.5}
    parts = changed(run, {"adapter": {"embedding": phases}})
    start, guard = start_of(parts.adapter), FiniteGuard(deferred=False)
    moved: list[tuple[bool, bool]] = []
    for step in range(1, STEPS + 1):
        before = start_of(parts.adapter)
        train_step(parts, step, guard)
        now = {path for path, weight in start_of(parts.adapter).items() if not torch.equal(weight, before[path])}
        moved.append(("embedding.text_encoder" in now, bool(now - {"embedding.text_encoder"})))
    parts.adapter.load_state_dict(start)
    assert moved == [(True, False)] * 2 + [(True, True)] * 2 + [(False, True)] * 4
    assert [rate_at(parts, "unet", step) for step in (2, 3)] == [0.0, 1e-2]
    assert [rate_at(parts, "embedding", step) for step in (4, 5)] == [2e-2, 0.0]


def test_a_pull_of_one_keeps_the_length_of_usual_words(components: Components) -> None:
    config = AdapterConfig(unet=UnetLora(rank=0), embedding=EmbeddingSettings(num_vectors=2, norm_pull=1.0))
    method = build_method(config, "zib")
    method.attach(components, 0)
    for vectors in method.parameter_groups()["embedding"]:
        vectors.data.mul_(7)
    method.after_step(1, 10)
    for encoder, vectors in zip(components.text_encoders.values(), method.parameter_groups()["embedding"], strict=True):
        usual = token_table(encoder).weight.norm(dim=1).mean()
        torch.testing.assert_close(vectors.detach().norm(dim=1), usual.expand(2))


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ({"adapter.embedding.num_vectors": 2}, "data.trigger_word"),
        ({"adapter.embedding.num_vectors": 2, "data.trigger_word": "zib, robot"}, "data.trigger_word"),
        ({"adapter.embedding.init_text": "red"}, "adapter.embedding.init_text"),
        (
            {"adapter.embedding.num_vectors": 2, "data.trigger_word": "zib", "adapter.embedding.first_share": 0.5},
            "adapter.embedding.first_share",
        ),
        (
            {
                "adapter.embedding.num_vectors": 2,
                "data.trigger_word": "zib",
                "adapter.unet.rank": 0,
                "adapter.embedding.stop_share": 0.5,
            },
            "adapter.embedding.stop_share",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(values: dict[str, Any], at: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build_config(nest(values))
    assert [finding.where for finding in refusal.value.findings] == [at]


def test_textual_inversion_needs_no_rank() -> None:
    config = build_config(
        {"adapter": {"unet": {"rank": 0}, "embedding": {"num_vectors": 1}}, "data": {"trigger_word": "zib"}}
    )
    assert not config.adapter.has_lora
    assert AdapterConfig().embedding == EmbeddingSettings()


# --- files ---------------------------------------------------------------------------------------------------------

MODULES = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": LoraModule(
        torch.randn(4, 16), torch.randn(16, 4), 4.0
    )
}


def write_bundle(path: Path, *, layers: int = 0, name: str = "zib", width: int = TEXT_WIDTH) -> Path:
    shape = (layers, 2, width) if layers else (2, width)
    write_lora(path, MODULES, {}, "fp32", embeddings=[embedding_from(name, {"text_encoder": torch.randn(shape)})])
    return path


def test_bundles_have_the_keys_that_other_programs_read(tmp_path: Path) -> None:
    tensors = load_file(write_bundle(tmp_path / "a.safetensors", layers=3))
    bundled = {key: tuple(tensor.shape) for key, tensor in tensors.items() if key.startswith("bundle_emb.")}
    assert bundled == {
        "bundle_emb.zib.string_to_param.*": (2, TEXT_WIDTH),
        "bundle_emb.zib.inkwash.per_layer.text_encoder": (3, 2, TEXT_WIDTH),
    }
    layers = tensors["bundle_emb.zib.inkwash.per_layer.text_encoder"]
    torch.testing.assert_close(tensors["bundle_emb.zib.string_to_param.*"], layers.mean(0))
    both = embedding_from("zib", {"text_encoder": torch.randn(2, 768), "text_encoder_2": torch.randn(2, 1280)})
    write_lora(tmp_path / "xl.safetensors", MODULES, {}, "fp16", embeddings=[both])
    xl = {key for key in load_file(tmp_path / "xl.safetensors") if key.startswith("bundle_emb.")}
    assert xl == {"bundle_emb.zib.clip_l", "bundle_emb.zib.clip_g"}


def test_an_embedding_alone_is_one_tensor_for_other_programs(tmp_path: Path) -> None:
    layers = torch.randn(3, 2, TEXT_WIDTH)
    embedding = embedding_from("zib", {"text_encoder": layers})
    write_embedding(tmp_path / "zib.safetensors", embedding.mean(), {"ss_steps": "7"})
    assert {key: tuple(t.shape) for key, t in load_file(tmp_path / "zib.safetensors").items()} == {
        "emb_params": (2, TEXT_WIDTH)
    }
    write_embedding(tmp_path / "own.safetensors", embedding)
    assert torch.equal(read_embedding(tmp_path / "own.safetensors").layers["text_encoder"], layers)


def test_tools_keep_working_on_files_with_bundles(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "a.safetensors", width=768)
    info = inspect_lora(path)
    assert (info.embeddings, info.num_vectors, info.trigger_words, info.trigger_words_are_guessed) == (
        ("zib",), 2, ("zib",), False,
    )  # fmt: skip
    assert describe_lora(path)["bundled_embeddings"] == ["zib"]
    reports = {report.tool: report for report in check_file(path)}
    assert reports["a1111"].loads == "all"
    assert reports["diffusers"].loads == "none"
    done = convert_lora(path, tmp_path / "b.safetensors", tool="diffusers")
    assert not read_lora(done.files[0]).embeddings
    tensors = read_lora(path).embeddings["zib"]
    assert torch.equal(read_embedding(done.files[1]).vectors["text_encoder"], tensors["string_to_param.*"])
    layered = write_bundle(tmp_path / "layered.safetensors", layers=3, name="zob", width=768)
    _, mean, own = convert_lora(layered, tmp_path / "d.safetensors", tool="diffusers").files
    assert (mean.name, own.name) == ("zob.safetensors", "zob-per-layer.safetensors")
    assert load_file(mean).keys() == {"emb_params"}
    assert read_embedding(own).layers["text_encoder"].shape == (3, 2, 768)
    other = write_bundle(tmp_path / "c.safetensors", name="zab", width=768)
    merge_loras([MergeInput(path, 1.0), MergeInput(other, 0.5)], tmp_path / "merged.safetensors")
    merged = read_lora(tmp_path / "merged.safetensors").embeddings
    assert merged.keys() == {"zib", "zab"}
    assert torch.equal(merged["zib"]["string_to_param.*"], tensors["string_to_param.*"])


# --- use -----------------------------------------------------------------------------------------------------------


def test_a_word_is_known_as_long_as_its_file_is_on_the_stack(loaded: dict[str, Components], tmp_path: Path) -> None:
    components = replace(loaded["sd1"], words=LearnedWords())
    path = write_bundle(tmp_path / "a.safetensors")
    alone = tmp_path / "zab.safetensors"
    write_embedding(alone, embedding_from("zab", {"text_encoder": torch.randn(1, TEXT_WIDTH)}))
    before = encode(components, "a zib, a zab")
    stack = LoraStack(components)
    stack.set([StackEntry(path, 0.5), StackEntry(alone)])
    assert components.words.words.keys() == {"zib", "zab"}
    assert not torch.equal(encode(components, "a zib, a zab"), before)
    stack.set([StackEntry(path, 0.0, 0.0)])
    assert not components.words.words
    stack.set([StackEntry(path)])
    wide = tmp_path / "wide.safetensors"
    write_embedding(wide, embedding_from("wide", {"text_encoder": torch.randn(1, 768)}))
    with pytest.raises(LoraFileError, match="another model"):
        stack.set([StackEntry(path), StackEntry(wide)])
    assert components.words.words.keys() == {"zib"}, "what cannot be read leaves the stack as it was"
    stack.clear()
    assert torch.equal(encode(components, "a zib, a zab"), before)


@pytest.mark.parametrize("way", ["merged", "beside"])
@pytest.mark.parametrize("text_weight", [0.0, 1.0])
def test_the_words_of_a_lora_for_some_steps_come_and_go_with_it(
    loaded: dict[str, Components], tmp_path: Path, way: Way, text_weight: float
) -> None:
    components = replace(loaded["sd1"], words=LearnedWords())
    entry = StackEntry(write_bundle(tmp_path / "a.safetensors"), 1.0, text_weight, start=0.25, end=0.75)
    schedule = StackSchedule(LoraStack(components), components, [entry], way)
    schedule.begin(4, 64, 1)
    assert len(schedule.beside) == (way == "beside")
    known = [(schedule.at(step), set(components.words.words)) for step in range(4)]
    # Where words come or go, the prompts are read again.
    assert known == [(False, set()), (True, {"zib"}), (False, {"zib"}), (True, set())]
    schedule.end()


def test_the_library_lists_embeddings_and_finds_those_that_a_prompt_names(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    data.loras.mkdir(parents=True)
    write_bundle(data.loras / "robot.safetensors")
    write_embedding(tmp_path / "zib.safetensors", embedding_from("zib", {"text_encoder": torch.randn(3, 768)}))
    assert import_lora(data, tmp_path / "zib.safetensors").name == "zib"
    entry = get_lora(data, "zib")
    assert (entry.problem, entry.size_text, entry.trigger_words) == ("", "embedding, 3 vectors", ("zib",))
    assert entry.info is not None
    assert entry.info.family == "Stable Diffusion 1.x"
    assert {found.name for found in list_loras(data)} == {"robot", "zib"}
    assert [found.name for found in named_embeddings(data, "a ZIB, robot", "")] == ["zib"]
    assert not named_embeddings(data, "a robot", "red zibs"), "only whole words"
