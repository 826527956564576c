"""LoRAs out of checkpoints and into them: every layout of a model's files, round trips, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import Cancelled, ConfigError, InkwashError, LoraFileError, ModelFileError
from trainer.lora_files.file import LoraModule, read_lora, write_lora
from trainer.lora_tools.bake import bake_loras
from trainer.lora_tools.checkpoints import Checkpoint
from trainer.lora_tools.extract import ExtractOptions, architecture_of_checkpoint, extract_lora
from trainer.lora_tools.merge import MergeInput
from trainer.lora_tools.truncation import Truncation

UNET = "model.diffusion_model."
TO_Q = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
CONV = "output_blocks.3.0.in_layers.2"
Q_NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
CROSS_NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
CONV_NAME = "lora_unet_up_blocks_1_resnets_0_conv1"
TEXT_NAME = "lora_te_text_model_encoder_layers_0_mlp_fc1"
CLIP = "cond_stage_model.transformer.text_model.encoder.layers.0."


def tensor(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sd1_checkpoint(path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A few layers of each kind under the names of a single SD 1.x file."""
    shapes = {
        f"{UNET}{TO_Q}.weight": (16, 16),
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": (16, 768),
        f"{UNET}{CONV}.weight": (12, 10, 3, 3),
        f"{UNET}{CONV}.bias": (12,),
        f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3),
        f"{CLIP}mlp.fc1.weight": (20, 14),
        f"{CLIP}layer_norm1.weight": (14,),
        "first_stage_model.decoder.conv_in.weight": (4, 4, 3, 3),
    }
    tensors = {key: tensor(*shape, seed=i, dtype=dtype) for i, (key, shape) in enumerate(shapes.items())}
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(tensors, path, {"modelspec.title": "base", "modelspec.hash_sha256": "0x00"})
    return path


def low_rank(rank: int = 3, seed: int = 50) -> dict[str, LoraModule]:
    shapes = {Q_NAME: (16, 16), CROSS_NAME: (16, 768), CONV_NAME: (12, 10, 3, 3), TEXT_NAME: (20, 14)}
    return {
        name: LoraModule(
            tensor(rank, *shape[1:], seed=seed + i), tensor(shape[0], rank, *(1 for _ in shape[2:]), seed=seed - i), 1.5
        )
        for i, (name, shape) in enumerate(shapes.items())
    }


def dense(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path)
    found: dict[str, Tensor] = {}
    for key, down in tensors.items():
        name, _, part = key.partition(".")
        if part == "lora_down.weight":
            up, scale = tensors[f"{name}.lora_up.weight"], float(tensors[f"{name}.alpha"]) / down.shape[0]
            found[name] = scale * up.double().flatten(1) @ down.double().flatten(1)
    return found


def write(path: Path, modules: Mapping[str, LoraModule] | None = None) -> Path:
    write_lora(path, modules or low_rank(), {"ss_base_model_version": "sd_v1"}, "fp32")
    return path


def test_bake_adds_exactly_the_weighted_changes_and_leaves_the_rest_byte_for_byte(tmp_path: Path) -> None:
    base = sd1_checkpoint(tmp_path / "base.safetensors")
    first = write(tmp_path / "a.safetensors")
    second = write(tmp_path / "b.safetensors", {Q_NAME: low_rank(2, 90)[Q_NAME]})
    original = base.read_bytes()
    out = tmp_path / "baked.safetensors"
    report = bake_loras([MergeInput(first, 0.5, 0.25), MergeInput(second, -0.7)], base, out)
    one, two, before, after = dense(first), dense(second), load_file(base), load_file(out)
    expected = dict(before)
    for key, change in {
        f"{UNET}{TO_Q}.weight": 0.5 * one[Q_NAME] - 0.7 * two[Q_NAME],
        f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight": 0.5 * one[CROSS_NAME],
        f"{UNET}{CONV}.weight": 0.5 * one[CONV_NAME],
        f"{CLIP}mlp.fc1.weight": 0.25 * one[TEXT_NAME],
    }.items():
        expected[key] = (before[key].double() + change.reshape(before[key].shape)).float()
        torch.testing.assert_close(after[key], expected[key])
        assert not torch.equal(after[key], before[key])
    untouched = expected.keys() - {key for key in before if not torch.equal(before[key], expected[key])}
    assert all(torch.equal(after[key], before[key]) for key in untouched)
    assert report.layers == 4
    assert report.relative_change > 0
    assert base.read_bytes() == original
    with safe_open(base, "pt") as old, safe_open(out, "pt") as new:
        assert list(new.keys()) == list(old.keys())
        metadata = new.metadata()
    assert metadata["modelspec.title"] == "base"
    assert "modelspec.hash_sha256" not in metadata
    assert json.loads(metadata["inkwash.tool"])["from"][1]["weight"] == -0.7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_baked_weights_keep_their_number_format_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    base = sd1_checkpoint(tmp_path / "base.safetensors", dtype)
    lora = write(tmp_path / "a.safetensors")
    out = tmp_path / "baked.safetensors"
    bake_loras([MergeInput(lora, 0.3)], base, out)
    key = f"{UNET}{TO_Q}.weight"
    before, after = load_file(base), load_file(out)
    assert after[key].dtype == dtype
    expected = before[key].double() + 0.3 * dense(lora)[Q_NAME]
    assert float((after[key].double() - expected).abs().max()) <= torch.finfo(dtype).eps * float(expected.abs().max())
    wide = tmp_path / "wide.safetensors"
    bake_loras([MergeInput(lora, 0.3)], base, wide, precision="fp32")
    found = load_file(wide)
    assert {value.dtype for value in found.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(found[key].double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[f"{UNET}{CONV}.bias"], before[f"{UNET}{CONV}.bias"].float())


def test_extract_of_a_baked_model_gives_the_lora_back(tmp_path: Path) -> None:
    base = sd1_checkpoint(tmp_path / "base.safetensors")
    lora, baked, out = write(tmp_path / "a.safetensors"), tmp_path / "baked.safetensors", tmp_path / "out.safetensors"
    bake_loras([MergeInput(lora)], base, baked)
    report = extract_lora(base, baked, out, ExtractOptions(Truncation("rank", 3), precision="fp32"))
    want, found = dense(lora), dense(out)
    assert found.keys() == want.keys()
    for name, change in want.items():
        assert float((found[name] - change).norm() / change.norm()) < 1e-5
    assert report.error < 1e-5
    # The rounding of the sum to float32 makes the difference of full rank; that part is what is lost.
    assert (report.layers, report.unchanged, report.left_out) == (4, 3, ())
    assert read_lora(out).metadata["ss_base_model_version"] == "sd_v1"
    again = tmp_path / "again.safetensors"
    bake_loras([MergeInput(out)], base, again)
    for key, value in load_file(baked).items():
        torch.testing.assert_close(load_file(again)[key], value, atol=1e-4, rtol=1e-4)


def test_extract_says_what_it_leaves_out(tmp_path: Path) -> None:
    base, tuned = sd1_checkpoint(tmp_path / "base.safetensors"), tmp_path / "tuned.safetensors"
    tensors = load_file(base)
    for key in (
        f"{UNET}{TO_Q}.weight",
        f"{UNET}{CONV}.weight",
        f"{UNET}input_blocks.0.0.weight",
        f"{CLIP}mlp.fc1.weight",
    ):
        tensors[key] = tensors[key] + tensor(*tensors[key].shape, seed=99)
    save_file(tensors, tuned)
    out = tmp_path / "out.safetensors"
    options = ExtractOptions(Truncation("sv_fro", 0.9), conv_rank=0, text_encoder=False)
    report = extract_lora(base, tuned, out, options)
    assert set(read_lora(out).modules) == {Q_NAME}
    assert set(report.left_out) == {CONV_NAME, TEXT_NAME, "lora_unet_conv_in"}
    assert 0.05 < report.error <= (1 - 0.9**2) ** 0.5
    conv = extract_lora(base, tuned, tmp_path / "c.safetensors", ExtractOptions(Truncation("rank", 5), conv_rank=2))
    assert {block.block: block.max_rank for block in conv.blocks}["up_blocks.1.resnets.0"] == 2
    assert conv.max_rank == 5


def test_an_fp16_copy_of_a_model_is_no_difference(tmp_path: Path) -> None:
    base = sd1_checkpoint(tmp_path / "base.safetensors")
    copy = tmp_path / "copy.safetensors"
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in load_file(base).items()}, copy
    )
    with pytest.raises(ModelFileError, match="do not differ"):
        extract_lora(base, copy, tmp_path / "out.safetensors", ExtractOptions(Truncation("rank", 3)))
    assert not (tmp_path / "out.safetensors").exists()


def sdxl_checkpoint(path: Path) -> dict[str, Tensor]:
    """The layers whose names are special in SDXL: OpenCLIP's fused attention and its transposed projection."""
    resblock = "conditioner.embedders.1.model.transformer.resblocks.3."
    tensors = {
        f"{UNET}input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": tensor(8, 2048, seed=1),
        f"{UNET}output_blocks.2.2.conv.weight": tensor(6, 6, 3, 3, seed=2),
        f"{UNET}label_emb.0.0.weight": tensor(5, 7, seed=3),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight": tensor(4, 4, seed=4),
        f"{resblock}attn.in_proj_weight": tensor(18, 6, seed=5),
        f"{resblock}attn.out_proj.weight": tensor(6, 6, seed=6),
        f"{resblock}mlp.c_fc.weight": tensor(9, 6, seed=7),
        "conditioner.embedders.1.model.text_projection": tensor(6, 5, seed=8),
    }
    save_file(tensors, path)
    return tensors


def test_layers_of_a_single_sdxl_file_are_found_by_their_common_names(tmp_path: Path) -> None:
    path = tmp_path / "xl.safetensors"
    tensors = sdxl_checkpoint(path)
    layer = "lora_te2_text_model_encoder_layers_3_"
    fused = tensors["conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight"]
    with Checkpoint(path) as found:
        assert set(found.slots) == {
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_k",
            "lora_unet_up_blocks_0_upsamplers_0_conv",
            "lora_unet_add_embedding_linear_1",
            "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
            *(f"{layer}self_attn_{part}_proj" for part in ("q", "k", "v", "out")),
            f"{layer}mlp_fc1",
            "lora_te2_text_projection",
        }
        assert found.is_xl
        assert architecture_of_checkpoint(found) == "sdxl"
        assert torch.equal(found.weight(f"{layer}self_attn_k_proj"), fused[6:12])
        assert torch.equal(
            found.weight("lora_te2_text_projection"), tensors["conditioner.embedders.1.model.text_projection"].T
        )


def test_extract_and_the_same_tensors_through_fused_attention(tmp_path: Path) -> None:
    base, tuned = tmp_path / "xl.safetensors", tmp_path / "tuned.safetensors"
    tensors = sdxl_checkpoint(base)
    key = "conditioner.embedders.1.model.transformer.resblocks.3.attn.in_proj_weight"
    change = torch.zeros(18, 6)
    change[6:12] = torch.outer(tensor(6, seed=20), tensor(6, seed=21))
    save_file({**tensors, key: tensors[key] + change}, tuned)
    with Checkpoint(base) as first, Checkpoint(tuned) as second:
        name = "lora_te2_text_model_encoder_layers_3_self_attn_k_proj"
        torch.testing.assert_close(second.weight(name) - first.weight(name), change[6:12])
        untouched = name.replace("k_proj", "v_proj")
        assert torch.equal(second.weight(untouched), first.weight(untouched))


def folder_of(path: Path, single: Path) -> Path:
    """A diffusers folder with the layers of `sd1_checkpoint`, the UNet twice: plain, and as an fp16 variant."""
    found = load_file(single)
    unet = {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": found[f"{UNET}{TO_Q}.weight"],
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight": found[
            f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        ],
        "up_blocks.1.resnets.0.conv1.weight": found[f"{UNET}{CONV}.weight"],
        "conv_in.weight": found[f"{UNET}input_blocks.0.0.weight"],
    }
    for part in ("unet", "text_encoder", "vae"):
        (path / part).mkdir(parents=True)
        (path / part / "config.json").write_text("{}")
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    save_file(unet, path / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({k: v.half() for k, v in unet.items()}, path / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    # As transformers 5 writes it: without the level `text_model`.
    text = {"encoder.layers.0.mlp.fc1.weight": found[f"{CLIP}mlp.fc1.weight"]}
    save_file(text, path / "text_encoder" / "model.safetensors")
    save_file({"a": torch.ones(3)}, path / "vae" / "diffusion_pytorch_model.safetensors")
    (path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"stale")
    return path


def test_bake_into_a_folder_changes_every_copy_of_the_weights_and_keeps_the_other_files(tmp_path: Path) -> None:
    single = sd1_checkpoint(tmp_path / "base.safetensors")
    folder, lora = folder_of(tmp_path / "model", single), write(tmp_path / "a.safetensors")
    out = tmp_path / "baked"
    report = bake_loras([MergeInput(lora, 0.4)], folder, out)
    bake_loras([MergeInput(lora, 0.4)], single, tmp_path / "single.safetensors")
    expected = load_file(tmp_path / "single.safetensors")[f"{UNET}{TO_Q}.weight"]
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(load_file(out / "unet" / "diffusion_pytorch_model.safetensors")[key], expected)
    half = load_file(out / "unet" / "diffusion_pytorch_model.fp16.safetensors")[key]
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, atol=4e-3, rtol=4e-3)
    text = load_file(out / "text_encoder" / "model.safetensors")["encoder.layers.0.mlp.fc1.weight"]
    assert torch.equal(text, load_file(tmp_path / "single.safetensors")[f"{CLIP}mlp.fc1.weight"])
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    # A pickle beside the new weights would still hold the old ones.
    assert names == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {
        "unet/diffusion_pytorch_model.bin"
    }
    assert report.layers == 4
    with pytest.raises(LoraFileError, match="already"):
        bake_loras([MergeInput(lora)], folder, out, overwrite=True)


def test_extract_takes_a_file_and_a_folder_together(tmp_path: Path) -> None:
    single = sd1_checkpoint(tmp_path / "base.safetensors")
    folder, lora = folder_of(tmp_path / "model", single), write(tmp_path / "a.safetensors")
    bake_loras([MergeInput(lora)], folder, tmp_path / "baked")
    out = tmp_path / "out.safetensors"
    extract_lora(single, tmp_path / "baked", out, ExtractOptions(Truncation("rank", 3), precision="fp32"))
    for name, change in dense(lora).items():
        assert float((dense(out)[name] - change).norm() / change.norm()) < 1e-5


# --- what is refused -------------------------------------------------------------------------------------------------


def refused(folder: Path, match: str, *, lora: Path, base: Path, weight: float = 1.0) -> InkwashError:
    before = sorted(folder.rglob("*"))
    with pytest.raises(InkwashError, match=match) as caught:
        bake_loras([MergeInput(lora, weight)], base, folder / "new.safetensors")
    assert sorted(folder.rglob("*")) == before
    return caught.value


def test_a_lora_for_another_model_is_refused_with_the_layers(tmp_path: Path) -> None:
    base = sd1_checkpoint(tmp_path / "base.safetensors")
    modules = low_rank()
    odd = write(tmp_path / "odd.safetensors", {**modules, Q_NAME: modules[TEXT_NAME]})
    assert Q_NAME in str(refused(tmp_path, "does not fit", lora=odd, base=base))
    strangers = {f"lora_unet_down_blocks_3_attentions_{i}_proj_in": modules[Q_NAME] for i in range(3)}
    far = write(tmp_path / "far.safetensors", {**modules, **strangers})
    assert "no such layer" in str(refused(tmp_path, "does not fit", lora=far, base=base))
    near = write(tmp_path / "near.safetensors", {**modules, **dict(list(strangers.items())[:1])})
    report = bake_loras([MergeInput(near)], base, tmp_path / "out.safetensors")
    assert report.unknown == {"near": ("lora_unet_down_blocks_3_attentions_0_proj_in",)}


def test_weights_beyond_fp16_nan_and_broken_files_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    base = sd1_checkpoint(tmp_path / "base.safetensors", torch.float16)
    lora = write(tmp_path / "a.safetensors")
    refused(tmp_path, "NaN or infinite", lora=lora, base=base, weight=1e6)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(base.read_bytes()[:-10])
    refused(tmp_path, "truncated", lora=lora, base=cut)
    pickle = tmp_path / "model.ckpt"
    pickle.write_bytes(b"PK")
    refused(tmp_path, "pickle", lora=lora, base=pickle)
    empty = tmp_path / "empty.safetensors"
    save_file({"a": torch.ones(2)}, empty)
    refused(tmp_path, "no weights", lora=lora, base=empty)
    refused(tmp_path, "no UNet", lora=lora, base=tmp_path)
    tensors = load_file(base)
    tensors[f"{UNET}{TO_Q}.weight"][0, 0] = float("nan")
    bad = tmp_path / "bad.safetensors"
    save_file(tensors, bad)
    with pytest.raises(ModelFileError, match=Q_NAME):
        extract_lora(base, bad, tmp_path / "out.safetensors", ExtractOptions(Truncation("rank", 2)))
    assert not (tmp_path / "out.safetensors").exists()


def test_models_of_two_families_are_refused(tmp_path: Path) -> None:
    base = sd1_checkpoint(tmp_path / "base.safetensors")
    sdxl_checkpoint(tmp_path / "xl.safetensors")
    with pytest.raises(ModelFileError, match="not of one family"):
        extract_lora(
            base, tmp_path / "xl.safetensors", tmp_path / "out.safetensors", ExtractOptions(Truncation("rank", 2))
        )
    with pytest.raises(ConfigError, match="not of low rank"):
        ExtractOptions(Truncation("exact"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_cancelled_bake_leaves_nothing_behind(tmp_path: Path, kind: str) -> None:
    single, lora = sd1_checkpoint(tmp_path / "base.safetensors"), write(tmp_path / "a.safetensors")
    base = single if kind == "file" else folder_of(tmp_path / "model", single)
    before = sorted(tmp_path.rglob("*"))

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        bake_loras([MergeInput(lora)], base, tmp_path / "out.safetensors", progress=stop)
    assert sorted(tmp_path.rglob("*")) == before
    shutil.rmtree(tmp_path)
