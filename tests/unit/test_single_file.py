"""Single files load offline to the weights that were saved; full-size key sets fit; what is no base model is said."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from app.services.starting import start_job
from tests.ldm_layout import full_checkpoint, full_size, tiny_checkpoint
from tests.tiny_model import make_tiny_model
from trainer.base_models.detection import detect
from trainer.base_models.families import FAMILY_FACTS
from trainer.config.model import BaseChoice
from trainer.errors import InkwashError, ModelFileError
from trainer.lora_files.layouts import written_name
from trainer.lora_files.names import kohya_name
from trainer.models import single_file
from trainer.models.clip_tokenizer import bundled_tokenizer
from trainer.models.components import Components, load_components
from trainer.models.probe import probe_prediction_type
from trainer.models.stored import StoredTensor
from trainer.models.unet_family import unet_targets
from trainer.paths import DataFolder

CPU = torch.device("cpu")
# Published numbers of parameters, to hold the bundled configurations against.
PARAMETERS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
# Tensors that the published single files have, as other programs tell the families apart by them.
LANDMARKS = {
    "sd1": {"model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1)},
    "sd2": {"model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)},
    "sdxl": {
        "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
    },
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: make_tiny_model(root / family, family=family) for family in FAMILY_FACTS}


@pytest.fixture
def tiny_configs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The bundled configurations with the sizes of the tiny models; their tokenizers come from the tiny models, too."""
    configs = tmp_path / "configs"
    for family, folder in folders.items():
        for part in FAMILY_FACTS[family].parts:
            (configs / family / part).mkdir(parents=True)
            for file in (*(folder / part).glob("*config.json"), *(folder / part).glob("tokenizer.json")):
                shutil.copy(file, configs / family / part)
    monkeypatch.setattr(single_file, "CONFIGS", configs)

    def tokenizer(settings: Path) -> Any:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(settings.parent, local_files_only=True)

    monkeypatch.setattr(single_file, "bundled_tokenizer", tokenizer)
    return configs


def same_weights(first: Components, second: Components) -> None:
    for part in first.parts:
        expected, found = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, found[name]), f"{part}.{name}"
            assert not found[name].is_meta


@pytest.mark.parametrize("family", list(FAMILY_FACTS))
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_single_file_loads_to_the_weights_of_the_folder(
    folders: dict[str, Path], tiny_configs: Path, tmp_path: Path, family: str, suffix: str
) -> None:
    path = tiny_checkpoint(folders[family], tmp_path / "ü é" / "my model.safetensors", family)
    if suffix == ".ckpt":
        torch.save({"state_dict": load_file(path), "global_step": 7}, path.with_suffix(".ckpt"))
        path = path.with_suffix(".ckpt")
    data = DataFolder(tmp_path)
    whole = load_components(str(folders[family]), data, CPU, torch.float32)
    choice = BaseChoice(base=str(path), prediction_type="epsilon" if family == "sd2" else "auto")
    found = load_components(choice, data, CPU, torch.float32)
    assert found.family.name == family
    same_weights(whole, found)
    with torch.no_grad():
        frame = torch.zeros(1, 6)
        noisy, times = torch.randn(1, 4, 16, 16), torch.tensor([500])
        first, second = (
            model.family.predict(model, noisy, times, model.family.encode_prompts(model, ["a red house"]).framed(frame))
            for model in (whole, found)
        )
    torch.testing.assert_close(first, second)
    assert len({found.fingerprint(part) for part in found.parts}) == len(found.parts)


def test_half_precision_is_read_into_the_asked_format(
    folders: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    path = tiny_checkpoint(folders["sd1"], tmp_path / "model.safetensors", "sd1")
    halves = {name: tensor.half() for name, tensor in load_file(path).items()}
    ids = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    save_file(halves | ids, path)
    found = load_components(str(path), DataFolder(tmp_path), CPU, torch.bfloat16)
    name = f"{single_file.UNET_PREFIX}input_blocks.0.0.weight"
    assert torch.equal(found.unet.conv_in.weight, halves[name].to(torch.bfloat16))
    assert found.text_encoder.dtype == torch.bfloat16


def test_another_vae_is_used_and_named_in_the_caches(
    folders: dict[str, Path], tiny_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_tiny_model(tmp_path / "other", seed=5)
    path = tiny_checkpoint(folders["sd1"], tmp_path / "model.safetensors", "sd1")
    tensors = load_file(path)
    bare = tmp_path / "bare.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage")}, bare)
    with pytest.raises(ModelFileError, match="vae"):
        load_components(str(bare), DataFolder(tmp_path), CPU, torch.float32)
    expected = load_components(str(other), DataFolder(tmp_path), CPU, torch.float32)
    original = tiny_checkpoint(other, tmp_path / "other.safetensors", "sd1")
    names = {name: tensor for name, tensor in load_file(original).items() if name.startswith("first_stage_model.")}
    alone = tmp_path / "vae.safetensors"
    save_file({name.removeprefix("first_stage_model."): tensor for name, tensor in names.items()}, alone)
    for vae in (alone, other / "vae", other):
        found = load_components(BaseChoice(base=str(bare), vae=str(vae)), DataFolder(tmp_path), CPU, torch.float32)
        for name, tensor in expected.vae.state_dict().items():
            assert torch.equal(tensor, found.vae.state_dict()[name])
        assert found.fingerprint("vae") != found.fingerprint("unet")
    # The form and the HTTP API take such a file where a VAE is chosen, and refuse it before the queue where none is.
    monkeypatch.setattr("trainer.jobs.start_next", lambda data: None)
    data = DataFolder(tmp_path)
    for kind, more in (("generate", {}), ("grid", {"x": "steps=4,8"}), ("grid", {"x": f"base={bare},{path}"})):
        with pytest.raises(InkwashError, match="vae"):
            start_job(data, kind, {"base": str(bare), **more})
        assert start_job(data, kind, {"base": str(bare), "vae": str(alone), **more})


def test_a_pickle_that_runs_code_is_refused(folders: dict[str, Path], tiny_configs: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "it ran",))

    path = tmp_path / "evil.ckpt"
    tensors = load_file(tiny_checkpoint(folders["sd1"], tmp_path / "model.safetensors", "sd1"))
    torch.save({"state_dict": tensors, "attack": Attack()}, path)
    with pytest.raises(ModelFileError, match="run code"):
        load_components(str(path), DataFolder(tmp_path), CPU, torch.float32)
    assert not (tmp_path / "it ran").exists()


def test_missing_tensors_are_named_before_anything_is_loaded(
    folders: dict[str, Path], tiny_configs: Path, tmp_path: Path
) -> None:
    path = tiny_checkpoint(folders["sd1"], tmp_path / "model.safetensors", "sd1")
    tensors = load_file(path)
    gone = f"{single_file.UNET_PREFIX}middle_block.0.in_layers.2.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, path)
    with pytest.raises(ModelFileError, match=r"mid_block\.resnets\.0\.conv1\.weight: is missing"):
        load_components(str(path), DataFolder(tmp_path), CPU, torch.float32)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="truncated"):
        load_components(str(path), DataFolder(tmp_path), CPU, torch.float32)


@pytest.mark.parametrize("family", list(FAMILY_FACTS))
def test_the_full_key_sets_convert_completely(family: str) -> None:
    parts = full_size(family)
    for name, count in PARAMETERS[family].items():
        assert sum(tensor.numel() for tensor in parts[name].values()) == count, name
    ldm = full_checkpoint(family)
    for name, shape in LANDMARKS[family].items():
        assert tuple(ldm[name].shape) == shape
    shapes = {name: tuple(tensor.shape) for name, tensor in ldm.items()}
    detected = detect(shapes, {}, "file")
    assert (detected.traits.family, detected.missing) == (family, ())

    def never() -> Tensor:
        raise AssertionError("only names and shapes are needed")

    stored = {name: StoredTensor(never, tensor) for name, tensor in ldm.items()}
    folder = single_file.CONFIGS / family
    converted = {"unet": single_file._unet(stored, folder), "vae": single_file._vae(stored, folder)}
    for name, prefix in single_file.TEXT_PREFIXES[family].items():
        encoder = single_file.empty_text_encoder(folder, name)
        converted[name] = single_file._text_encoder(encoder, stored, prefix)
    for name, state in parts.items():
        assert {key: value.shape for key, value in converted[name].items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize(
    ("family", "examples"),
    [
        ("sd1", ["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"]),
        ("sd2", ["lora_unet_mid_block_attentions_0_proj_in", "lora_unet_up_blocks_3_attentions_2_proj_out"]),
        (
            "sdxl",
            [
                "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_out_0",
                "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
                "lora_unet_output_blocks_5_1_proj_in",
                "lora_unet_output_blocks_8_0_skip_connection",
                "lora_unet_input_blocks_3_0_op",
                "lora_unet_output_blocks_2_2_conv",
            ],
        ),
    ],
)
def test_every_layer_of_the_full_unet_has_a_name_of_its_own(family: str, examples: list[str]) -> None:
    unet = single_file._empty_unet(single_file.CONFIGS / family)
    paths = unet_targets(unet, "all+conv")
    names = {written_name(kohya_name(f"unet.{path}"), family == "sdxl") for path in paths}
    assert len(names) == len(paths)
    assert set(examples) <= names


def test_the_bundled_tokenizer_is_clips() -> None:
    settings = single_file.CONFIGS / "sdxl"
    first = bundled_tokenizer(settings / "tokenizer" / "tokenizer_config.json")
    second = bundled_tokenizer(settings / "tokenizer_2" / "tokenizer_config.json")
    assert len(first) == 49408
    # Known from OpenAI's documentation of CLIP.
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first("Hello,  WORLD!").input_ids == first("hello, world!").input_ids
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)
    assert first.model_max_length == 77


@pytest.mark.parametrize(
    ("keys", "metadata", "expected"),
    [
        ({}, {}, ("epsilon", False)),
        ({"v_pred": ()}, {}, ("v_prediction", False)),
        ({"v_pred": (), "ztsnr": ()}, {}, ("v_prediction", True)),
        ({"ztsnr": ()}, {}, ("epsilon", False)),
        ({}, {"modelspec.prediction_type": "v"}, ("v_prediction", False)),
        ({"ztsnr": ()}, {"modelspec.prediction_type": "v"}, ("v_prediction", True)),
    ],
)
def test_noise_is_detected_from_markers_and_metadata(
    keys: dict[str, Any], metadata: dict[str, str], expected: tuple[str, bool]
) -> None:
    xl = {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": (768,),
        "conditioner.embedders.1.model.ln_final.bias": (1280,),
        "first_stage_model.encoder.conv_in.bias": (128,),
    }
    traits = detect(xl | keys, metadata, "file").traits
    assert (traits.family, traits.prediction_type, traits.zero_terminal_snr) == ("sdxl", *expected)


@pytest.mark.parametrize(
    ("metadata", "sidecar", "expected"),
    [
        ({}, "", ""),
        ({}, 'model:\n  params:\n    parameterization: "v"\n', "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "", "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "", "epsilon"),
        ({"modelspec.prediction_type": "epsilon"}, "", "epsilon"),
    ],
)
def test_the_two_kinds_of_sd2_are_told_apart(metadata: dict[str, str], sidecar: str, expected: str) -> None:
    keys = {"model.diffusion_model.x": (), "cond_stage_model.model.ln_final.bias": (), "first_stage_model.x": ()}
    assert detect(keys, metadata, "file", sidecar).traits.prediction_type == expected


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"model.diffusion_model.input_blocks.0.0.weight": (320, 8, 3, 3)}, "image-editing"),
        ({"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "FLUX"),
        ({"joint_blocks.0.x_block.mlp.fc1.weight": (6144, 1536)}, "Stable Diffusion 3"),
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (4, 4)}, "LoRA"),
        ({"encoder.conv_in.weight": (128, 3, 3, 3), "decoder.conv_in.weight": (1, 1, 1, 1)}, "VAE alone"),
        ({"edm_vpred.sigma_max": (), "model.diffusion_model.x": ()}, "EDM"),
        ({"model.diffusion_model.x": (), "conditioner.embedders.0.model.ln_final.bias": ()}, "refiner"),
        ({"something.else": (1,)}, "no Stable Diffusion checkpoint"),
    ],
)
def test_what_cannot_be_a_base_model_is_said(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelFileError, match=sentence):
        detect(keys, {}, "file")


@pytest.mark.parametrize(("gives_noise_back", "expected"), [(True, "epsilon"), (False, "v_prediction")])
def test_a_model_that_does_not_say_what_it_predicts_is_asked(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, gives_noise_back: bool, expected: str
) -> None:
    components = load_components(str(folders["sd2"]), DataFolder(folders["sd2"].parent), CPU, torch.float32)

    def forward(noisy: Tensor, *args: object, **kwargs: object) -> tuple[Tensor]:
        return (noisy if gives_noise_back else -torch.ones_like(noisy),)

    monkeypatch.setattr(components.unet, "forward", forward)
    assert probe_prediction_type(components) == expected
