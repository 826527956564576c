"""Names and layouts: the key sets of the real models, files of other tools, and what is written for which tool."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.random_lora import modules_for
from trainer.cli.main import main
from trainer.errors import LoraFileError
from trainer.lora_files.conversion import convert_lora
from trainer.lora_files.embeddings import Embedding, read_embedding, write_embedding
from trainer.lora_files.file import LoraModule, read_lora, write_lora
from trainer.lora_files.header import read_header
from trainer.lora_files.inspect import inspect_lora
from trainer.lora_files.matching import match_modules
from trainer.lora_files.modules import DifferenceModule, LohaModule
from trainer.lora_files.names import from_sgm, kohya_name, module_path, to_sgm
from trainer.lora_files.relative import DoraModule
from trainer.lora_files.targets import TARGETS, check_file

SD1: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FULL_SIZE = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}
# What kohya trains by default, and how many layers that is by its own count.
DEFAULT_COUNTS = {"sd1": 192, "sd2": 192, "sdxl": 722}
WITH_CONVOLUTIONS = {"sd1": 86, "sd2": 86, "sdxl": 66}


@cache
def unet_shapes(family: str) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of a full-size UNet, without its memory."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**FULL_SIZE[family])
    return {
        f"unet.{path}": tuple(module.weight.shape)
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm)
    }


def text_shapes(component: str, layers: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        start = f"{component}.text_model.encoder.layers.{layer}"
        shapes |= {f"{start}.self_attn.{side}_proj": (width, width) for side in ("q", "k", "v", "out")}
        shapes |= {f"{start}.mlp.fc1": (4 * width, width), f"{start}.mlp.fc2": (width, 4 * width)}
    return shapes


@pytest.mark.parametrize("family", FULL_SIZE)
def test_names_of_the_real_models_go_both_ways(family: str) -> None:
    paths = [*unet_shapes(family), "text_encoder.text_model.final_layer_norm", "text_encoder_2.text_projection"]
    names = [kohya_name(path) for path in paths]
    assert len(set(names)) == len(paths)
    assert [module_path(name) for name in names] == paths
    assert [module_path(kohya_name(f"{path}.bias")) for path in paths] == [f"{path}.bias" for path in paths]
    bare = [name.removeprefix("lora_unet_") for name in names if name.startswith("lora_unet_")]
    sgm = [to_sgm(name) for name in bare]
    assert len(set(sgm)) == len(bare)
    assert [from_sgm(name) for name in sgm] == bare
    assert not any("down_blocks" in name or "resnets" in name or "mid_block" in name for name in sgm)
    in_attentions = [path for path in paths if ".attentions." in path and len(unet_shapes(family).get(path, ())) > 1]
    assert len(in_attentions) == DEFAULT_COUNTS[family]
    convolutions = [
        path
        for path, shape in unet_shapes(family).items()
        if any(word in path for word in (".resnets.", "samplers.")) and len(shape) > 1
    ]
    assert len(convolutions) == WITH_CONVOLUTIONS[family]


def test_block_names_are_those_that_diffusers_maps() -> None:
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers

    class Config:
        layers_per_block = 2

    ours = [name for name in map(kohya_name, unet_shapes("sdxl")) if "_attentions_" in name or "_resnets_" in name]
    ours = [name for name in ours if "_norm" not in name or "transformer_blocks" in name]
    theirs = {f"lora_unet_{to_sgm(name.removeprefix('lora_unet_'))}.lora_down.weight": name for name in ours}
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(theirs), Config())
    for key, name in mapped.items():
        if "_resnets_" not in name:  # diffusers names the layers within a residual block in a later step
            for sgm, block in (
                ("input_blocks", "down_blocks"),
                ("middle_block", "mid_block"),
                ("output_blocks", "up_blocks"),
            ):
                key = key.replace(sgm, block)  # and the kind of block, too
            assert key == f"{name}.lora_down.weight"


def sdxl_modules() -> dict[str, LoraModule]:
    """Rank 1 on every layer that kohya trains by default, of full size in names only: the widths are cut to 1/64."""
    shapes = {path: shape for path, shape in unet_shapes("sdxl").items() if ".attentions." in path and len(shape) > 1}
    shapes |= text_shapes("text_encoder", 12, 768) | text_shapes("text_encoder_2", 32, 1280)
    return modules_for({path: tuple(side // 64 for side in shape[:2]) for path, shape in shapes.items()}, rank=1)


def test_the_sdxl_key_set_is_written_as_kohya_names_it_and_read_by_both_namings(tmp_path: Path) -> None:
    modules = sdxl_modules()
    write_lora(tmp_path / "xl.safetensors", modules, {}, "fp32")
    tensors = load_file(tmp_path / "xl.safetensors")
    names = {key.split(".")[0] for key in tensors}
    assert len(names) == 722 + 72 + 192
    assert {name.split("_")[1] for name in names} == {"unet", "te1", "te2"}
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q" in names
    assert "lora_unet_output_blocks_5_1_proj_out" in names
    assert "lora_te2_text_model_encoder_layers_31_self_attn_out_proj" in names
    lora = read_lora(tmp_path / "xl.safetensors")
    assert (lora.architecture, len(lora.modules)) == ("sdxl", len(modules))
    shapes = {path: (module.up.shape[0], module.down.shape[1]) for path, module in modules.items()}
    found = match_modules(lora, shapes, "xl")
    assert found.modules.keys() == modules.keys()
    assert not found.unknown
    assert all(torch.equal(found.modules[path].down, module.down) for path, module in modules.items())
    with_diffusers_names = {
        kohya_name(path).replace("lora_te_", "lora_te1_") + f".{part}": tensor
        for path, module in modules.items()
        for part, tensor in module.tensors().items()
    }
    save_file(with_diffusers_names, tmp_path / "other.safetensors")
    assert read_lora(tmp_path / "other.safetensors").modules.keys() == lora.modules.keys()
    assert {r.tool: r.loads for r in check_file(tmp_path / "xl.safetensors")} == dict.fromkeys(TARGETS, "all")


ATTN = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
TE = "text_model.encoder.layers.0.self_attn.q_proj"
OTHER_TOOLS = {
    # key of the down matrix, key of the up matrix, canonical name
    "sd1, original code's names": ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight", "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight", kohya_name(f"unet.{ATTN}.to_k")),
    "processors": (f"unet.{ATTN}.processor.to_out_lora.down.weight", f"unet.{ATTN}.processor.to_out_lora.up.weight", kohya_name(f"unet.{ATTN}.to_out.0")),
    "scripts": (f"unet.{ATTN}.to_q.lora.down.weight", f"unet.{ATTN}.to_q.lora.up.weight", kohya_name(f"unet.{ATTN}.to_q")),
    "scripts, text": (f"text_encoder.{TE}.lora_linear_layer.down.weight", f"text_encoder.{TE}.lora_linear_layer.up.weight", kohya_name(f"text_encoder.{TE}")),
    "peft names": (f"unet.{ATTN}.to_out.0.lora_A.weight", f"unet.{ATTN}.to_out.0.lora_B.weight", kohya_name(f"unet.{ATTN}.to_out.0")),
    "named adapter": (f"unet.{ATTN}.to_q.lora_A.my-style.weight", f"unet.{ATTN}.to_q.lora_B.my-style.weight", kohya_name(f"unet.{ATTN}.to_q")),
    "peft library": (f"base_model.model.{ATTN}.to_q.lora_A.weight", f"base_model.model.{ATTN}.to_q.lora_B.weight", kohya_name(f"unet.{ATTN}.to_q")),
    "peft library, text": (f"base_model.model.{TE}.lora_A.weight", f"base_model.model.{TE}.lora_B.weight", kohya_name(f"text_encoder.{TE}")),
    "transformers 5 names": ("lora_te_encoder_layers_0_mlp_fc1.lora_down.weight", "lora_te_encoder_layers_0_mlp_fc1.lora_up.weight", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
    "comfyui": ("diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_q.lora_A.weight", "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_q.lora_B.weight", kohya_name(f"unet.{ATTN}.to_q")),
    "comfyui, text": (f"text_encoders.clip_g.transformer.{TE}.lora_A.weight", f"text_encoders.clip_g.transformer.{TE}.lora_B.weight", kohya_name(f"text_encoder_2.{TE}")),
    "simpletuner": (f"lycoris_{ATTN.replace('.', '_')}_to_q.lora_down.weight", f"lycoris_{ATTN.replace('.', '_')}_to_q.lora_up.weight", kohya_name(f"unet.{ATTN}.to_q")),
    "a1111": ("diffusion_model_middle_block_1_proj_in.lora_down.weight", "diffusion_model_middle_block_1_proj_in.lora_up.weight", "lora_unet_mid_block_attentions_0_proj_in"),
    "onetrainer": ("lora_te2_text_projection.lora_down.weight", "lora_te2_text_projection.lora_up.weight", "lora_te2_text_projection"),
}  # fmt: skip


@pytest.mark.parametrize("tool", OTHER_TOOLS)
def test_names_of_other_tools_are_read(tmp_path: Path, tool: str) -> None:
    down_key, up_key, name = OTHER_TOOLS[tool]
    down, up = torch.randn(2, 5), torch.randn(7, 2)
    save_file({down_key: down, up_key: up}, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    assert lora.modules.keys() == {name}
    assert lora.lacks_alpha
    torch.testing.assert_close(lora.modules[name].delta_weight(torch.empty(7, 5)), up @ down)
    assert inspect_lora(tmp_path / "a.safetensors").ranks == (2,)


def test_settings_beside_a_peft_file_are_its_scale(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for end in ("to_q", "to_k"):
        tensors |= {f"base_model.model.{ATTN}.{end}.lora_A.weight": torch.ones(4, 5)}
        tensors |= {f"base_model.model.{ATTN}.{end}.lora_B.weight": torch.ones(7, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"r": 4, "lora_alpha": 8, "alpha_pattern": {f"{ATTN}.to_k": 2}, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    lora = read_lora(tmp_path / "adapter_model.safetensors")
    scales = {name[-4:]: module.delta_weight(torch.empty(7, 5))[0, 0] / 4 for name, module in lora.modules.items()}
    assert scales == {"to_q": 8 / 4**0.5, "to_k": 2 / 4**0.5}
    assert not lora.lacks_alpha
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(LoraFileError, match="damaged"):
        read_lora(tmp_path / "adapter_model.safetensors")


SMALL = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (8, 8),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": (8, 8),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (8, 768),
    "unet.up_blocks.1.resnets.0.conv1": (8, 6, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (16, 16),
}


def tucker_file(path: Path) -> dict[str, LoraModule]:
    modules = modules_for(SMALL, rank=3, alpha=2.0)
    name = "unet.up_blocks.1.resnets.0.conv1"
    modules[name] = LoraModule(torch.randn(3, 6, 1, 1), torch.randn(8, 3, 1, 1), 1.5, torch.randn(3, 3, 3, 3))
    write_lora(path, modules, {"ss_output_name": "ink"}, "fp32")
    return modules


@pytest.mark.parametrize("tool", TARGETS)
def test_a_conversion_for_each_tool_keeps_every_change(tmp_path: Path, tool: str) -> None:
    modules = tucker_file(tmp_path / "a.safetensors")
    done = convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tool=tool)
    assert done.report is not None
    assert (done.report.loads, dict(done.report.ignored)) == ("all", {})
    lora = read_lora(tmp_path / "b.safetensors")
    assert lora.layout == TARGETS[tool].layout
    assert lora.metadata["ss_output_name"] == "ink"
    for path, module in modules.items():
        shape = torch.empty(SMALL[path])
        torch.testing.assert_close(lora.modules[kohya_name(path)].delta_weight(shape), module.delta_weight(shape))


@pytest.mark.parametrize(("layout", "dtype", "tolerance"), [("diffusers", "fp16", 2e-3), ("peft", "bf16", 2e-2), ("kohya", "fp32", 1e-6)])  # fmt: skip
def test_layouts_in_each_precision(tmp_path: Path, layout: str, dtype: str, tolerance: float) -> None:
    modules = tucker_file(tmp_path / "a.safetensors")
    done = convert_lora(tmp_path / "a.safetensors", tmp_path / "out.safetensors", layout=layout, dtype=dtype)
    found = {name: module for file in done.files for name, module in read_lora(file).modules.items()}
    assert {inspect_lora(file).dtype for file in done.files} == {dtype}
    for path, module in modules.items():
        wanted = module.delta_weight(torch.empty(SMALL[path]))
        change = found[kohya_name(path)].delta_weight(wanted) - wanted
        assert change.abs().max() <= tolerance * wanted.abs().max() * 4


def test_what_a_tool_does_not_read_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    path = next(iter(SMALL))
    loha = LohaModule((torch.ones(8, 2), torch.ones(2, 8)), (torch.ones(8, 2), torch.ones(2, 8)), 2.0)
    write_lora(tmp_path / "a.safetensors", {path: loha}, {}, "fp16")
    for options in ({"tool": "diffusers"}, {"tool": "kohya"}, {"layout": "diffusers"}, {"layout": "peft"}):
        with pytest.raises(LoraFileError) as caught:
            convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", **options)
        assert caught.value.findings[0].where == kohya_name(path)
        assert "loha" in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tool="comfyui")
    with pytest.raises(LoraFileError, match="exists"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tool="comfyui")


def test_check_tells_what_each_tool_ignores(tmp_path: Path) -> None:
    def loads(tensors: dict[str, Tensor]) -> dict[str, str]:
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / "a.safetensors")
        return {report.tool: report.loads for report in check_file(tmp_path / "a.safetensors")}

    def pair(name: str, ends: tuple[str, str] = ("lora_down.weight", "lora_up.weight")) -> dict[str, Tensor]:
        return {f"{name}.{ends[0]}": torch.ones(1, 768), f"{name}.{ends[1]}": torch.ones(4, 1)}

    good = pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k")
    everywhere = dict.fromkeys(TARGETS, "all")
    assert loads(good) == everywhere
    assert loads(good | pair("lora_unet_conv_in")) == everywhere | {"kohya": "part"}
    # By the original code's names an SD 1 file is known to three of the six.
    sgm = pair("lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k")
    assert loads(sgm) == everywhere | dict.fromkeys(("kohya", "invokeai", "diffusers"), "none")
    te1 = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1")
    assert loads(good | te1) == everywhere | {"kohya": "part", "invokeai": "none"}
    bundled = good | {"bundle_emb.zib.string_to_param.*": torch.ones(2, 768)}
    assert loads(bundled) == everywhere | {"diffusers": "none"}
    peft = ("lora_A.weight", "lora_B.weight")
    dotted: dict[str, Tensor] = {}
    for block in range(7):
        dotted |= pair(f"unet.down_blocks.0.attentions.{block}.transformer_blocks.0.attn2.to_k", peft)
    dotted |= pair("unet.down_blocks.0.attentions.0.proj_in", peft)
    assert loads(dotted) == dict.fromkeys(TARGETS, "none") | {"diffusers": "all", "comfyui": "part"}


def test_an_incomplete_attention_is_completed_for_a1111(tmp_path: Path) -> None:
    shapes = text_shapes("text_encoder_2", 1, 16)
    modules = modules_for({path: shape for path, shape in shapes.items() if "q_proj" in path or "fc1" in path})
    write_lora(tmp_path / "a.safetensors", modules, {}, "fp32")
    report = {r.tool: r for r in check_file(tmp_path / "a.safetensors")}["a1111"]
    assert report.loads == "part"
    done = convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tool="a1111")
    assert done.report is not None
    assert done.report.loads == "all"
    added = read_lora(tmp_path / "b.safetensors").modules["lora_te2_text_model_encoder_layers_0_self_attn_k_proj"]
    assert not added.delta_weight(torch.ones(16, 16)).any()
    assert load_file(tmp_path / "b.safetensors")  # readable by safetensors itself
    assert read_header(tmp_path / "b.safetensors")[0]["ss_base_model_version"] == "sdxl_base_v1-0"


def test_bundled_embeddings_become_files(tmp_path: Path) -> None:
    tensors = {f"{kohya_name(path)}.{part}": tensor for path, m in modules_for(SMALL).items() for part, tensor in m.tensors().items()}  # fmt: skip
    tensors["bundle_emb.zi/b.string_to_param.*"] = torch.randn(2, 768)
    save_file(tensors, tmp_path / "a.safetensors")
    assert inspect_lora(tmp_path / "a.safetensors").embeddings == ("zi/b",)
    done = convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tool="diffusers")
    embedding = read_embedding(done.files[1])
    assert done.files[1] == tmp_path / "zi_b.safetensors"
    assert torch.equal(embedding.vectors["text_encoder"], tensors["bundle_emb.zi/b.string_to_param.*"])


def test_embeddings_of_all_forms_are_read(tmp_path: Path) -> None:
    vectors, second = torch.randn(3, 768), torch.randn(3, 1280)
    a1111 = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "zib", "step": 5}
    torch.save(a1111, tmp_path / "a.pt")
    assert read_embedding(tmp_path / "a.pt").name == "zib"
    files = {"emb_params": vectors, "emp_params": vectors, "<zib>": vectors[0]}
    for key, tensor in files.items():
        save_file({key: tensor.contiguous()}, tmp_path / "b.safetensors")
        found = read_embedding(tmp_path / "b.safetensors")
        assert torch.equal(found.vectors["text_encoder"], tensor.reshape(-1, 768))
    assert found.name == "<zib>"
    write_embedding(tmp_path / "c.safetensors", Embedding("c", {"text_encoder": vectors, "text_encoder_2": second}))
    assert load_file(tmp_path / "c.safetensors").keys() == {"clip_l", "clip_g"}
    assert torch.equal(read_embedding(tmp_path / "c.safetensors").vectors["text_encoder_2"], second)
    save_file({"emb_params": torch.full((1, 4), float("nan"))}, tmp_path / "d.safetensors")
    (tmp_path / "e.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for name in ("d.safetensors", "e.pt"):
        with pytest.raises(LoraFileError):
            read_embedding(tmp_path / name)


def test_metadata_are_changed_without_touching_the_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    private = {"ss_dataset_dirs": "{}", "ot_config": "/home/ada", "modelspec.title": "Ink", "ss_v2": "False"}
    write_lora(path, modules_for({"unet.conv_in": (300, 900)}, rank=250), private, "fp32")
    data = hashlib.sha256(path.read_bytes()[-250 * 1200 * 4 :]).hexdigest()
    assert main(["lora", "metadata", str(path), "--set", "modelspec.trigger_phrase=zib, ink=wash"]) == 0
    metadata, _ = read_header(path)
    assert metadata["modelspec.trigger_phrase"] == "zib, ink=wash"
    assert metadata["ot_config"] == "/home/ada"
    assert hashlib.sha256(path.read_bytes()[-250 * 1200 * 4 :]).hexdigest() == data
    out = tmp_path / "b.safetensors"
    assert main(["lora", "metadata", str(path), "--strip-private", "--out", str(out), "--json"]) == 0
    stripped = json.loads(capsys.readouterr().out.splitlines()[-1])["metadata"]
    assert stripped == read_header(out)[0]
    assert not {"ot_config", "ss_dataset_dirs"} & stripped.keys()
    assert stripped["modelspec.title"] == "Ink"
    # kohya's short hash is over the file as it were with the remaining ss_* entries.
    save_file(load_file(out), tmp_path / "c.safetensors", {"ss_v2": "False"})
    window = (tmp_path / "c.safetensors").read_bytes()[0x100000:0x110000]
    assert stripped["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]
    assert read_lora(out).modules.keys() == read_lora(path).modules.keys()
    before = path.read_bytes()
    for wrong in (["--set", "x"], ["--remove", "gone"], ["--set", "sshs_model_hash=0"], ["--out", str(out)]):
        assert main(["lora", "metadata", str(path), *wrong]) in (2, 5)
    assert path.read_bytes() == before
    capsys.readouterr()


def test_the_commands_say_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tucker_file(tmp_path / "a.safetensors")
    assert main(["lora", "check", str(tmp_path / "a.safetensors")]) == 0
    assert "kohya sd-scripts  in part" in capsys.readouterr().out
    convert = ["convert", str(tmp_path / "a.safetensors"), "--for", "kohya", "--dtype", "fp16"]
    assert main(["lora", "--json", *convert, "--data-dir", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = tmp_path / "loras" / "a-kohya.safetensors"
    assert result["files"] == [str(written)]
    assert inspect_lora(written).dtype == "fp16"
    assert main(["lora", "inspect", str(written), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kinds"] == ["lora"]


def test_a_few_unknown_tensors_are_told_and_not_converted_away(tmp_path: Path) -> None:
    tensors = {f"{kohya_name(path)}.{part}": tensor for path, m in modules_for(SMALL).items() for part, tensor in m.tensors().items()}  # fmt: skip
    save_file({**tensors, "stray": torch.ones(1)}, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    assert match_modules(lora, SMALL, "tiny").unknown == ("stray",)
    with pytest.raises(LoraFileError, match="would be lost"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_peft_loads_what_is_written_for_it(tmp_path: Path) -> None:
    import peft

    def net() -> nn.Module:
        block = nn.Module()
        block.conv_in, block.conv_out = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1)
        return block

    shapes = {"unet.conv_in": (6, 3, 3, 3), "unet.conv_out": (2, 6, 1, 1)}
    modules: dict[str, Any] = modules_for({"unet.conv_in": shapes["unet.conv_in"]}, rank=3, alpha=1.5)
    modules |= modules_for({"unet.conv_out": shapes["unet.conv_out"]}, rank=2, alpha=5.0)
    base = net()
    weights = {
        "unet.conv_in": base.conv_in.weight.detach().clone(),
        "unet.conv_out": base.conv_out.weight.detach().clone(),
    }
    for use_dora in (False, True):
        if use_dora:
            modules = {
                path: DoraModule(module, torch.rand(shapes[path][0], 1, 1, 1) + 0.5, 0)
                for path, module in modules.items()
            }
        write_lora(tmp_path / "adapter_model.safetensors", modules, {}, "fp32", layout="peft")
        model = net()
        model.load_state_dict(base.state_dict())
        merged = peft.PeftModel.from_pretrained(model, str(tmp_path)).merge_and_unload()
        for path, module in modules.items():
            found = getattr(merged, path.removeprefix("unet.")).weight.detach() - weights[path]
            torch.testing.assert_close(found, module.delta_weight(weights[path]), atol=1e-5, rtol=1e-4)


def test_files_of_peft_are_read_as_peft_applies_them(tmp_path: Path) -> None:
    import peft

    configs: dict[str, Any] = {
        "dora": peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=["conv_in"], init_lora_weights=False),
        "loha": peft.LoHaConfig(r=2, alpha=3, target_modules=["conv_in"], init_weights=False),
        "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=["conv_in"], init_weights=False),
        "oft": peft.OFTConfig(oft_block_size=3, r=0, target_modules=["conv_in"], init_weights=False),
        "ia3": peft.IA3Config(target_modules=["conv_in"], feedforward_modules=[], init_ia3_weights=False),
    }
    for kind, config in configs.items():
        torch.manual_seed(7)
        model = nn.Module()
        model.conv_in = nn.Linear(6, 9)
        weight = model.conv_in.weight.detach().clone()
        wrapped = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * (0.02 if "magnitude" in name else 0.2))
        wrapped.save_pretrained(str(tmp_path / kind))
        merged = wrapped.merge_and_unload().conv_in.weight.detach()
        lora = read_lora(tmp_path / kind / "adapter_model.safetensors")
        found = lora.modules["lora_unet_conv_in"]
        assert found.kind == kind
        assert (merged - weight).abs().max() > 1e-3
        torch.testing.assert_close(weight + found.delta_weight(weight), merged, atol=1e-5, rtol=1e-4)


def test_biases_travel_in_the_kohya_layout(tmp_path: Path) -> None:
    modules = {"unet.conv_in.bias": DifferenceModule(torch.arange(3.0), "diff_b")}
    write_lora(tmp_path / "a.safetensors", modules, {}, "fp32")
    assert load_file(tmp_path / "a.safetensors").keys() == {"lora_unet_conv_in.diff_b"}
    assert (
        match_modules(read_lora(tmp_path / "a.safetensors"), {"unet.conv_in.bias": (3,)}, "t").modules.keys()
        == modules.keys()
    )
