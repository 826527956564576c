"""LoRA files: reading strangers', writing ours, what they say of themselves."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.random_lora import modules_for
from trainer.config.run import RunConfig
from trainer.errors import LoraFileError
from trainer.lora_files.file import DTYPES, LoraModule, read_lora, write_lora
from trainer.lora_files.formats.kohya import kohya_name, kohya_names
from trainer.lora_files.header import read_header
from trainer.lora_files.inspect import describe_lora, inspect_lora, trigger_words
from trainer.lora_files.matching import match_modules
from trainer.lora_files.metadata import TrainingFacts, build_metadata, config_from_metadata

Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
CROSS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.up_blocks.1.resnets.0.conv1"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"
SHAPES = {Q: (8, 8), OUT: (8, 8), CROSS: (8, 16), CONV: (8, 6, 3, 3), TEXT: (16, 16)}
FACTS = TrainingFacts(
    name="ink",
    base_name="tiny",
    steps=7,
    epochs=2,
    num_train_images=3,
    width=64,
    height=96,
    started_at=1_700_000_000.0,
    finished_at=1_700_000_100.0,
    trigger_word="zib",
    tag_frequency={"set": {"zib": 3, "a red house": 1}},
)


def write(path: Path, **options: object) -> dict[str, LoraModule]:
    modules = modules_for(SHAPES, **options)  # type: ignore[arg-type]
    write_lora(path, modules, build_metadata(RunConfig(), FACTS), "fp32")
    return modules


def refused(path: Path) -> str:
    with pytest.raises(LoraFileError) as caught:
        read_lora(path)
    assert caught.value.where == str(path)
    return str(caught.value)


def test_names_follow_the_kohya_rules() -> None:
    assert kohya_name(OUT) == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
    # transformers 5 lost `text_model`, the other tools did not.
    assert kohya_name(TEXT) == "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert kohya_name("text_encoder.text_model.encoder.layers.0.mlp.fc1").startswith("lora_te_text_model_encoder_")
    assert kohya_names(SHAPES) == {kohya_name(path): path for path in SHAPES}
    with pytest.raises(ValueError, match="vae"):
        kohya_name("vae.decoder.conv_in")


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_a_written_file_comes_back_in_its_number_format(tmp_path: Path, dtype: str) -> None:
    modules = modules_for(SHAPES)
    write_lora(tmp_path / "a.safetensors", modules, {"ss_v2": "False"}, dtype)
    found = match_modules(read_lora(tmp_path / "a.safetensors"), SHAPES, "tiny")
    assert found.unknown == ()
    assert found.modules.keys() == modules.keys()
    for path, module in modules.items():
        assert torch.equal(found.modules[path].down, module.down.to(DTYPES[dtype]))
        assert torch.equal(found.modules[path].up, module.up.to(DTYPES[dtype]))
        assert found.modules[path].alpha == 2.0
    assert inspect_lora(tmp_path / "a.safetensors").dtype == dtype


def test_a_written_file_has_only_kohya_keys_and_an_alpha_a_module(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    _, header = read_header(tmp_path / "a.safetensors")
    expected = {
        f"{kohya_name(path)}.{part}" for path in SHAPES for part in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert header.keys() == expected
    assert header[f"{kohya_name(CONV)}.lora_down.weight"] == ("F32", (4, 6, 3, 3))
    assert header[f"{kohya_name(CONV)}.lora_up.weight"] == ("F32", (8, 4, 1, 1))
    assert header[f"{kohya_name(Q)}.alpha"] == ("F32", ())
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert set(file.keys()) == expected


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_different_alphas_become_one_without_changing_the_lora(tmp_path: Path) -> None:
    modules = modules_for(SHAPES)
    modules[Q] = LoraModule(modules[Q].down, modules[Q].up, 8.0)
    write_lora(tmp_path / "a.safetensors", modules, {}, "fp32")
    found = match_modules(read_lora(tmp_path / "a.safetensors"), SHAPES, "tiny").modules
    assert {module.alpha for module in found.values()} == {2.0}
    for path, shape in SHAPES.items():
        torch.testing.assert_close(
            found[path].delta_weight(torch.empty(shape)), modules[path].delta_weight(torch.empty(shape))
        )


def test_delta_weight_is_scaled_up_times_down() -> None:
    module = modules_for({CONV: (8, 6, 3, 3)}, rank=2, alpha=3.0)[CONV]
    expected = 1.5 * torch.einsum("or,rikl->oikl", module.up[:, :, 0, 0], module.down)
    torch.testing.assert_close(module.delta_weight(torch.empty(8, 6, 3, 3)), expected)


def test_nothing_is_written_of_what_cannot_be_right(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    broken, large = modules_for(SHAPES), modules_for(SHAPES)
    broken[Q].up[0, 0] = float("nan")
    large[Q].up[0, 0] = 1e6
    for modules, dtype, word in ((broken, "fp32", "NaN"), (large, "fp16", "too large"), ({}, "fp16", "no layers")):
        with pytest.raises(LoraFileError, match=word):
            write_lora(path, modules, {}, dtype)
    assert list(tmp_path.iterdir()) == []
    write_lora(path, large, {}, "bf16")


def test_hashes_are_those_that_other_tools_compute(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, modules_for({Q: (400, 400), CONV: (80, 80, 3, 3)}, rank=300), {"ss_v2": "False", "x": "y"}, "fp32")
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    metadata, _ = read_header(path)
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + metadata["sshs_model_hash"]
    # kohya's way: the file as safetensors itself would write it with the ss_* metadata only.
    save_file(load_file(path), tmp_path / "b.safetensors", {"ss_v2": "False"})
    window = (tmp_path / "b.safetensors").read_bytes()[0x100000:0x110000]
    assert len(window) == 0x10000
    assert metadata["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]


def test_small_files_have_the_legacy_hash_of_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    assert read_header(tmp_path / "a.safetensors")[0]["sshs_legacy_hash"] == "e3b0c442"


def as_kohya(modules: dict[str, LoraModule]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, module in modules.items():
        tensors[f"{kohya_name(path)}.lora_down.weight"] = module.down.clone()
        tensors[f"{kohya_name(path)}.lora_up.weight"] = module.up.clone()
        tensors[f"{kohya_name(path)}.alpha"] = torch.tensor(module.alpha)
    return tensors


def damage(tensors: dict[str, Tensor], what: str) -> None:
    name = kohya_name(Q)
    if what == "nan":
        tensors[f"{name}.lora_up.weight"][0, 0] = float("nan")
    elif what == "inf alpha":
        tensors[f"{name}.alpha"] = torch.tensor(float("inf"))
    elif what == "partner":
        del tensors[f"{name}.lora_up.weight"]
    elif what == "rank 0":
        tensors[f"{name}.lora_down.weight"] = torch.zeros(0, 8)
        tensors[f"{name}.lora_up.weight"] = torch.zeros(8, 0)
    elif what == "ranks differ":
        tensors[f"{name}.lora_up.weight"] = torch.zeros(8, 3)
    elif what == "stray":
        tensors.update({f"something.{index}": torch.zeros(3) for index in range(9)})


@pytest.mark.parametrize(
    ("what", "word"),
    [("nan", "NaN"), ("inf alpha", "infinite"), ("partner", "lacks a part"), ("rank 0", "rank 0"), ("ranks differ", "together"), ("stray", "something.0")],
)  # fmt: skip
def test_damaged_loras_are_refused(tmp_path: Path, what: str, word: str) -> None:
    tensors = as_kohya(modules_for(SHAPES))
    damage(tensors, what)
    save_file(tensors, tmp_path / "a.safetensors")
    assert word in refused(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("lora_unet_x.hada_w1_a", "lora_unet_x"),
        ("emb_params", "textual-inversion"),
        ("lora_unet_x.a1.weight", "GLoRA"),
        ("lora_unet_double_blocks_0_img_mod_lin.lora_up.weight", "Flux"),
        ("model.diffusion_model.input_blocks.0.0.weight", "whole model"),
        ("something", "no LoRA that Inkwash knows"),
    ],
)
def test_other_kinds_are_refused_by_their_name(tmp_path: Path, key: str, kind: str) -> None:
    save_file(
        {**as_kohya(modules_for(SHAPES)), key: torch.ones(2, 2)} if key != "something" else {key: torch.ones(2)},
        tmp_path / "a.safetensors",
    )
    assert kind in refused(tmp_path / "a.safetensors")


def contents() -> dict[str, tuple[bytes, str]]:
    whole = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'

    def file(header: bytes, data: bytes) -> bytes:
        return len(header).to_bytes(8, "little") + header + data

    return {
        "empty": (b"", "empty or truncated"),
        "pickle": (b"\x80\x02}q\x00" + b"x" * 100, "pickle"),
        "zip": (b"PK\x03\x04" + b"x" * 100, "pickle"),
        "web page": (b"<!DOCTYPE html><html>", "web page"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        "text": (b"hello, this is a text file", "not a safetensors"),
        "cut in the header": (file(whole, b"")[:30], "truncated"),
        "cut in the data": (file(whole, b"\0" * 7), "truncated"),
        "too long": (file(whole, b"\0" * 9), "belong to nothing"),
        "huge header": ((2**40).to_bytes(8, "little") + whole, "more than"),
        "no json": (file(b'{"a":', b""), "damaged"),
        "deep json": (file(b'{"a":' + b"[" * 100_000, b""), "damaged"),
        "twice": (file(whole[:-1] + b"," + whole[1:], b"\0" * 8), "twice"),
        "overlap": (file(whole[:-1] + b',"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"\0" * 8), "overlap"),
        "hole": (file(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', b"\0" * 16), "holes"),
        "size": (file(b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', b"\0" * 8), "shape"),
        "negative": (file(b'{"a":{"dtype":"F32","shape":[-1,-2],"data_offsets":[0,8]}}', b"\0" * 8), "natural"),
        "bool": (file(b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', b"\0" * 4), "natural"),
        "dtype": (file(b'{"a":{"dtype":"F5","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8), "number format"),
        "metadata": (file(b'{"__metadata__":{"a":1}}', b""), "not texts"),
        "no tensors": (file(b"{}", b""), "no tensors"),
    }  # fmt: skip


@pytest.mark.parametrize("name", contents())
def test_files_that_are_no_safetensors_are_refused_by_header_alone(tmp_path: Path, name: str) -> None:
    data, word = contents()[name]
    (tmp_path / "a.safetensors").write_bytes(data)
    for read in (read_lora, inspect_lora):
        with pytest.raises(LoraFileError, match=word):
            read(tmp_path / "a.safetensors")


def test_a_length_that_looks_like_a_pickle_is_legal(tmp_path: Path) -> None:
    # A header of 0x...80 bytes begins with the byte that a pickle begins with.
    header = b'{"lora_unet_a.lora_down.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"lora_unet_a.lora_up.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}'
    header += b" " * (0x180 - len(header))
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    assert read_lora(tmp_path / "a.safetensors").modules["lora_unet_a"].rank == 1


def diffusers_layouts() -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    """For each layout: the prefix of each module with its two endings, and metadata."""
    processor = Q.replace("to_q", "processor.to_q_lora"), OUT.replace("to_out.0", "processor.to_out_lora")
    text = TEXT.replace("encoder.layers", "text_model.encoder.layers").replace("text_text_", "text_")
    peft = {path: path for path in SHAPES} | {TEXT: text}
    return {
        "peft": (peft, {}),
        "script": (peft, {}),
        "processor": ({Q: processor[0], OUT: processor[1]}, {}),
        "peft with alpha": (
            peft,
            {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "text_encoder.lora_alpha": 2})},
        ),
    }


ENDINGS = {
    "peft": ("lora_A.weight", "lora_B.weight"),
    "peft with alpha": ("lora_A.weight", "lora_B.weight"),
    "script": ("lora.down.weight", "lora.up.weight"),
    "processor": ("down.weight", "up.weight"),
}


@pytest.mark.parametrize("layout", ENDINGS)
def test_diffusers_layouts_are_read(tmp_path: Path, layout: str) -> None:
    names, metadata = diffusers_layouts()[layout]
    modules = modules_for({path: SHAPES[path] for path in names})
    down, up = ENDINGS[layout]
    tensors = {f"{names[path]}.{down}": module.down for path, module in modules.items()}
    tensors |= {f"{names[path]}.{up}": module.up for path, module in modules.items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    lora = read_lora(tmp_path / "a.safetensors")
    found = match_modules(lora, SHAPES, "tiny").modules
    assert lora.layout == "diffusers"
    assert lora.lacks_alpha is not bool(metadata)
    assert found.keys() == modules.keys()
    for path, module in modules.items():
        assert torch.equal(found[path].down, module.down)
        assert torch.equal(found[path].up, module.up)
        # Without alpha every reader takes the scale 1, which is alpha = rank.
        assert found[path].alpha == (2.0 if metadata else 4.0)


def test_first_text_encoder_by_its_sdxl_name_is_read(tmp_path: Path) -> None:
    tensors = {key.replace("lora_te_", "lora_te1_"): tensor for key, tensor in as_kohya(modules_for(SHAPES)).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert TEXT in match_modules(read_lora(tmp_path / "a.safetensors"), SHAPES, "tiny").modules


def test_matrices_of_1x1_convolutions_and_linear_layers_are_interchangeable(tmp_path: Path) -> None:
    modules = modules_for({Q: (8, 8, 1, 1)})
    write_lora(tmp_path / "a.safetensors", modules, {}, "fp32")
    module = match_modules(read_lora(tmp_path / "a.safetensors"), SHAPES, "tiny").modules[Q]
    assert module.delta_weight(torch.empty(8, 8)).shape == (8, 8)


def test_a_lora_for_another_model_is_refused_with_both_named(tmp_path: Path) -> None:
    write_lora(tmp_path / "wide.safetensors", modules_for({CROSS: (8, 1024)}), {"ss_sd_model_name": "sd21"}, "fp32")
    with pytest.raises(LoraFileError) as caught:
        match_modules(read_lora(tmp_path / "wide.safetensors"), SHAPES, "tiny")
    assert "Stable Diffusion 2.x (base model 'sd21')" in str(caught.value)
    assert "'tiny'" in str(caught.value)
    assert "(8, 16)" in str(caught.value.findings[0])
    sdxl = "unet.input_blocks.8.1.transformer_blocks.3.attn1.to_q"
    write_lora(tmp_path / "xl.safetensors", modules_for({sdxl: (8, 8)}), {}, "fp32")
    with pytest.raises(LoraFileError, match="Stable Diffusion XL"):
        match_modules(read_lora(tmp_path / "xl.safetensors"), SHAPES, "tiny")


def test_a_few_unknown_layers_are_told_and_many_refused(tmp_path: Path) -> None:
    extra = "unet.add_embedding.linear_1"
    write_lora(tmp_path / "a.safetensors", modules_for({**SHAPES, extra: (4, 4)}), {}, "fp32")
    match = match_modules(read_lora(tmp_path / "a.safetensors"), SHAPES, "tiny")
    assert match.unknown == (kohya_name(extra),)
    assert match.modules.keys() == SHAPES.keys()
    with pytest.raises(LoraFileError, match="no such layer"):
        match_modules(read_lora(tmp_path / "a.safetensors"), {Q: (8, 8), TEXT: (16, 16)}, "tiny")


def test_metadata_tell_what_the_file_is(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    info = inspect_lora(tmp_path / "a.safetensors")
    assert (info.title, info.base_model, info.steps) == ("ink", "tiny", 7)
    assert (info.ranks, info.alphas) == ((4,), (2.0,))
    assert (info.trigger_words, info.trigger_words_are_guessed) == (("zib",), False)
    assert (info.has_unet, info.has_text_encoder, info.has_convolutions, info.num_modules) == (True, True, True, 5)
    assert info.architecture == "sd1"
    assert info.sha256 == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    metadata = dict(info.metadata)
    assert all(isinstance(value, str) for value in metadata.values())
    assert metadata["ss_v2"] == "False"
    assert metadata["ss_network_module"] == "networks.lora"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert json.loads(metadata["ss_tag_frequency"]) == {"set": {"zib": 3, "a red house": 1}}
    assert float(metadata["ss_training_started_at"]) == 1_700_000_000.0
    assert metadata["modelspec.resolution"] == "64x96"
    for key in (
        "sai_model_spec",
        "architecture",
        "implementation",
        "title",
        "description",
        "author",
        "date",
        "trigger_phrase",
        "tags",
    ):
        assert metadata[f"modelspec.{key}"], key


@pytest.mark.parametrize(
    ("adapter", "module", "expected"),
    [
        ({}, "networks.lora", {"algo": "lora"}),
        ({"method": "rslora"}, "lycoris.kohya", {"algo": "lora", "rs_lora": True}),
        ({"method": "loraplus"}, "networks.lora", {"algo": "lora", "loraplus_lr_ratio": 16.0}),
        ({"method": "dora"}, "lycoris.kohya", {"algo": "lora", "dora_wd": True, "wd_on_output": False}),
        ({"method": "adalora"}, "networks.lora", {"algo": "lora"}),
        ({"method": "loha", "module_dropout": 0.1}, "lycoris.kohya", {"algo": "loha", "module_dropout": 0.1}),
        (
            {"method": "lokr", "unet": {"targets": "all+conv", "rank": 4, "alpha": 2.0}},
            "lycoris.kohya",
            {"algo": "lokr", "factor": 8, "conv_dim": 4, "conv_alpha": 2.0},
        ),
        ({"method": "oft"}, "lycoris.kohya", {"algo": "diag-oft", "constraint": 0.0}),
    ],
)
def test_the_network_is_named_as_kohya_and_lycoris_do(
    adapter: dict[str, Any], module: str, expected: dict[str, Any]
) -> None:
    metadata = build_metadata(RunConfig.model_validate({"adapter": adapter}), FACTS)
    assert metadata["ss_network_module"] == module
    assert json.loads(metadata["ss_network_args"]) == expected


def test_settings_travel_in_the_file_without_paths(tmp_path: Path) -> None:
    config = RunConfig.model_validate(
        {
            "data": {"dataset": "/home/ada/secret/cats", "resolution": 64},
            "model": {"base": r"C:\Users\ada\models\base"},
            "note": "ünïcode",
        }
    )
    metadata = build_metadata(config, FACTS)
    assert not any(word in text for text in metadata.values() for word in ("/home", "secret", "Users"))
    data = config_from_metadata(metadata)
    assert data["data"]["dataset"] == "cats"
    assert data["model"]["base"] == "base"
    again = RunConfig.model_validate(data)
    assert again.note == "ünïcode"
    assert again.data.resolution == 64
    with pytest.raises(LoraFileError, match="does not carry"):
        config_from_metadata({})
    with pytest.raises(LoraFileError, match="damaged"):
        config_from_metadata({"inkwash.config": "{"})


@pytest.mark.parametrize("frequency", ["", "[", "[]", '{"a": []}', '{"a": {"b": "c"}}', "[" * 100_000])
def test_nonsense_in_the_tags_is_no_error(frequency: str) -> None:
    assert trigger_words({"ss_tag_frequency": frequency}) == ((), False)


def test_trigger_words_are_guessed_from_the_commonest_tags() -> None:
    frequency = json.dumps({"a": {"zib": 10, "tree": 2}, "b": {"zib": 5, "ink style": 14}})
    assert trigger_words({"ss_tag_frequency": frequency}) == (("zib", "ink style"), True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_alphas_are_read_without_torch_in_every_number_format(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = as_kohya(modules_for({Q: SHAPES[Q]}))
    tensors[f"{kohya_name(Q)}.alpha"] = torch.tensor(6, dtype=dtype)
    save_file(tensors, tmp_path / "a.safetensors")
    assert inspect_lora(tmp_path / "a.safetensors").alphas == (6.0,)
    assert read_lora(tmp_path / "a.safetensors").modules[kohya_name(Q)].alpha == 6.0


def test_a_description_is_plain_data_without_escape_sequences(tmp_path: Path) -> None:
    metadata = {
        "ss_output_name": "ink\x1b[2J",
        "ss_sd_model_name": "tiny",
        "ss_tag_frequency": '{"a": {"zib\\u001b": 2}}',
    }
    write_lora(tmp_path / "a.safetensors", modules_for(SHAPES), metadata, "fp16")
    facts = describe_lora(tmp_path / "a.safetensors")
    assert "\x1b" not in json.dumps(facts, ensure_ascii=False)
    assert "\\u001b[" not in json.dumps(facts["title"])
    assert (facts["title"], facts["base_model"], facts["ranks"], facts["layers"]) == ("ink [2J", "tiny", [4], 5)
    assert facts["trigger_words"] == ["zib "]
    assert facts["data_sha256"] == facts["metadata"]["sshs_model_hash"]


def test_inspecting_needs_no_torch() -> None:
    modules = "trainer.lora_files.inspect, trainer.lora_files.metadata, trainer.library, trainer.recipe, sys"
    subprocess.run([sys.executable, "-c", f"import {modules}; assert 'torch' not in sys.modules"], check=True)
