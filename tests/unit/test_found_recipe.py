"""Recipes in pictures of other programs: infotexts as they are found, ComfyUI's graphs, hostile ones; LoRAs by hash and name."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file

from trainer.base_models.scan import model_sha256
from trainer.config.generate import GenerateConfig, UpscalerName
from trainer.errors import ConfigError
from trainer.files import file_sha256
from trainer.found_recipe import FoundRecipe, read_any_recipe
from trainer.infotext import MAX_CHARACTERS, parse_hashes, parse_infotext, parse_settings, write_infotext
from trainer.lora_lookup import hashes_of
from trainer.paths import DataFolder
from trainer.picture_texts import decode_user_comment
from trainer.recipe import Recipe, RecipeHashes, save_picture
from trainer.sampler_names import OURS, eta_name, find_comfy_sampler, find_sampler, split_sampler
from trainer.sampling.samplers import SAMPLERS

UPSCALERS = get_args(UpscalerName)
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path / "data")
    folder.loras.mkdir(parents=True)
    for index, name in enumerate(("ink", "robot", "renamed")):
        tensors = {
            f"{LAYER}.lora_down.weight": np.full((4, 32), index, np.float16),
            f"{LAYER}.lora_up.weight": np.zeros((32, 4), np.float16),
        }
        save_file(tensors, folder.loras / f"{name}.safetensors")
    return folder


def png(path: Path, **texts: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


# Each as a program writes it, and what is to be found of it.
INFOTEXTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a1111 1.9": (
        "masterpiece, 1girl <lora:ink:0.8>\nNegative prompt: (worst quality:1.4), text\n"
        "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 2712843491, Size: 512x768, "
        "Model hash: 6ce0161689, Model: v1-5-pruned-emaonly, Clip skip: 2, "
        'Lora hashes: "ink: 0123456789ab", Version: v1.9.4',
        {"prompt": "masterpiece, 1girl", "negative_prompt": "(worst quality:1.4), text", "num_inference_steps": 28,
         "sampler": "DPM++ 2M Karras", "guidance_scale": 7.0, "seed": 2712843491, "width": 512, "height": 768, "clip_skip": 2,
         "hires_scale": 1.0, "init_image": "", "seamless": False},
        "v1-5-pruned-emaonly",
    ),
    "a1111 1.4, the schedule in the sampler's name": (
        "a cat\nSteps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 1, Size: 512x512, Model hash: cc6cb27103",
        {"prompt": "a cat", "negative_prompt": "", "sampler": "DPM++ 2M Karras", "guidance_scale": 7.5},
        "cc6cb27103",
    ),
    "the automatic schedule": (
        "a\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Automatic, CFG scale: 7, Seed: 1, Size: 512x512",
        {"sampler": "DPM++ 2M Karras"},
        "",
    ),
    "the plain schedule": (
        "a\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Uniform, CFG scale: 7, Seed: 1, Size: 512x512",
        {"sampler": "DPM++ 2M"},
        "",
    ),
    "a hires fix": (
        "a\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.5, "
        "Hires upscale: 2, Hires steps: 10, Hires upscaler: 4x-UltraSharp, Version: v1.6.0",
        {"sampler": "Euler a", "num_inference_steps": 20, "hires_scale": 2.0, "hires_steps": 10, "hires_strength": 0.5,
         "hires_upscaler": "lanczos"},
        "The upscaler '4x-UltraSharp' is not known here: 'lanczos' was taken.",
    ),
    "forge's hires fix, which repeats the first pass": (
        "a\nSteps: 20, Sampler: Euler, Schedule type: Beta, CFG scale: 7, Seed: 1, Size: 512x768, Denoising strength: 0.7, "
        "Hires Module 1: Use same choices, Hires CFG Scale: 7, Hires resize: 1024x1536, Hires upscaler: Latent (bicubic), "
        "Version: f2.0.1",
        {"sampler": "Euler Beta", "hires_scale": 2.0, "hires_strength": 0.7, "hires_upscaler": "latent bicubic"},
        "",
    ),
    "a hires fix to another shape": (
        "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.7, Hires resize: 1024x1536, "
        "Hires upscaler: Latent, Hires CFG Scale: 3",
        {"width": 512, "hires_strength": 0.7, "hires_scale": 1.0},
        "Not taken over: Hires resize: 1024x1536, Hires upscaler: Latent, Hires CFG Scale: 3.",
    ),
    "the hires fix of 2022": (
        "a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 1024x768, Denoising strength: 0.6, First pass size: 512x384",
        {"width": 512, "height": 384, "hires_scale": 2.0, "hires_strength": 0.6},
        "",
    ),
    "a picture made from another": (
        "a\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 512x512, Denoising strength: 0.4, Mask blur: 8, Eta DDIM: 0.5, "
        "Inpaint area: Only masked, Masked area padding: 64",
        {"strength": 0.4, "mask_blur": 8, "mask_padding": 64, "eta": 0.5, "hires_strength": None},
        "It was made from another picture; that and its mask are not in this one",
    ),
    "what extensions and options add": (
        "a\nSteps: 20, Sampler: DPM2 a, Schedule type: Automatic, CFG Scale: 7, Seed: 1, Size: 512x512, Eta: 0.7, Tiling: True, "
        "CFG Rescale phi: 0.7, Noise Schedule: Zero Terminal SNR",
        {"sampler": "DPM2 a Karras", "seamless": True, "guidance_rescale": 0.7, "zero_terminal_snr": "yes", "eta": -1.0},
        "Not taken over: Eta: 0.7.",
    ),
    "quoted values with commas, colons and line breaks": (
        'a\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 512x512, ADetailer prompt: "a face, Steps: 99,\\nSeed: 7", '
        'Model: "a, b: c", Version: v1.7.0',
        {"seed": 5, "num_inference_steps": 20, "sampler": "Euler"},
        "a, b: c",
    ),
    "lines in the prompts": (
        "one,\ntwo\n\nBREAK three\nNegative prompt: four\nfive: six\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512",
        {"prompt": "one,\ntwo\n\nBREAK three", "negative_prompt": "four\nfive: six"},
        "",
    ),
    "windows line ends, no prompt": (
        "\r\nNegative prompt: fog\r\nSteps: 9, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 512x512\r\n",
        {"prompt": "", "negative_prompt": "fog", "sampler": "DDIM", "num_inference_steps": 9},
        "",
    ),
    "settings only": (
        "Steps: 9, Sampler: Heun, CFG scale: 7, Seed: 1, Size: 512x512",
        {"prompt": "", "sampler": "Heun"},
        "",
    ),
    "a prompt that talks like settings": (
        "Steps: a long, winding stair\nSteps: 12, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 64x64",
        {"prompt": "Steps: a long, winding stair", "num_inference_steps": 12},
        "",
    ),
    "templates behind the settings": (
        "a red cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.6.0\n\n"
        "Template: a {red|blue} cat\nNegative Template: fog",
        {"prompt": "a red cat", "seed": 1},
        "Template: a {red|blue} cat",
    ),
    "a site's json without quotes": (
        'a fox\nNegative prompt: text\nSteps: 30, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 42, Size: 832x1216, Clip skip: 2, '
        'Created Date: 2024-05-05T12:00:00.1234567Z, Civitai resources: [{"type":"checkpoint","modelVersionId":128078,'
        '"modelName":"Some, Model","modelVersionName":"v1.0"},{"type":"lora","weight":0.65,"modelVersionId":2,'
        '"modelName":"ink"}], Civitai metadata: {"a": [1, 2]}',
        {"prompt": "a fox", "seed": 42, "width": 832, "height": 1216},
        "Some, Model",
    ),
    "values that cannot be": (
        "a\nSteps: 9000, Sampler: DPM fast, CFG scale: 700, Seed: 1, Size: 515x769, Clip skip: 12",
        {"seed": 1, "width": 512, "height": 768},
        "DPM fast",
    ),
    "no settings at all": ("just a prompt, with: a colon", {"prompt": "just a prompt, with: a colon"}, ""),
    "steps with a point": ("a\nSteps: 20.0, Sampler: Euler a, CFG scale: 7, Seed: 1", {"num_inference_steps": 20}, ""),
    "another language": (
        "日本の家, 雪\nNegative prompt: 霧\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 512x512",
        {"prompt": "日本の家, 雪", "negative_prompt": "霧"},
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INFOTEXTS)
def test_infotexts_as_they_are_found(name: str, data: DataFolder, tmp_path: Path) -> None:
    text, expected, said = INFOTEXTS[name]
    found = read_any_recipe(data, png(tmp_path / "a.png", parameters=text))
    assert {key: found.settings.get(key) for key in expected} == expected
    assert found.source == "A1111"
    assert said in "\n".join(found.notes)
    GenerateConfig.model_validate(found.settings)


def test_what_cannot_be_is_left_off_and_named(data: DataFolder, tmp_path: Path) -> None:
    text = INFOTEXTS["values that cannot be"][0]
    found = read_any_recipe(data, png(tmp_path / "a.png", parameters=text))
    assert not {"num_inference_steps", "guidance_scale", "sampler", "clip_skip"} & set(found.settings)
    said = "\n".join(found.notes)
    for word in ("9000", "700", "'12'", "515 x 769"):
        assert word in said


def test_loras_are_found_by_hash_then_by_name_and_missing_ones_named(data: DataFolder, tmp_path: Path) -> None:
    by_tensors = hashes_of(data.loras / "renamed.safetensors")[1][:12]
    by_file = file_sha256(data.loras / "robot.safetensors")[:10]
    text = (
        "a <lora:old name:0.5:1> <lora:robot:te=0.2:unet=0.9> <lora:ink:0.7> <lora:lost:1>\n"
        "Steps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64, "
        f'Lora hashes: "old name: {by_tensors}, robot: {by_file}, ink: ffffffffffff, lost: eeeeeeeeeeee", Version: v1.9.0'
    )
    found = read_any_recipe(data, png(tmp_path / "a.png", parameters=text))
    rows = [(lora["file"], lora["unet_weight"], lora["text_encoder_weight"]) for lora in found.settings["loras"]]
    # Of A1111's two plain weights the first is the text encoder's.
    assert rows == [("renamed", 1.0, 0.5), ("robot", 0.9, 0.2), ("ink", 0.7, 0.7), ("lost", 1.0, 1.0)]
    assert found.missing == ("lost",)
    assert found.settings["prompt"] == "a"
    assert any("'old name' is called 'renamed'" in note for note in found.notes)
    assert any("'ink' is another version" in note for note in found.notes)


def test_a_site_without_tags_lists_its_loras(data: DataFolder, tmp_path: Path) -> None:
    found = read_any_recipe(data, png(tmp_path / "a.png", parameters=INFOTEXTS["a site's json without quotes"][0]))
    assert [(lora["file"], lora["unet_weight"]) for lora in found.settings["loras"]] == [("ink", 0.65)]


def test_our_own_picture_finds_a_lora_that_was_renamed(data: DataFolder, tmp_path: Path) -> None:
    loras = [{"file": "called so there", "unet_weight": 0.3, "blocks": "MIDD"}, {"file": "gone"}]
    config = GenerateConfig.model_validate({"base": "no such model", "prompt": "a", "loras": loras, "device": "cpu"})
    digest = hashes_of(data.loras / "renamed.safetensors")[1]
    for suffix in ("png", "jpg", "webp"):
        path = tmp_path / f"a.{suffix}"
        hashes = RecipeHashes(loras=(digest, ""))
        save_picture(Image.new("RGB", (8, 8)), path, Recipe(config, 3, 64, 64, "No such model", hashes))
        found = read_any_recipe(data, path)
        assert [(lora["file"], lora["blocks"]) for lora in found.settings["loras"]] == [
            ("renamed", "MIDD"),
            ("gone", ""),
        ]
        assert (found.source, found.missing, found.settings["seed"]) == ("Inkwash", ("gone",), 3)
        # The form keeps what is not of the picture: the base model that is there, the device.
        assert not {"base", "device", "output_format"} & set(found.settings)
        assert any("no such model" in note for note in found.notes)


def test_loras_of_one_name_in_two_folders_are_kept_apart(data: DataFolder, tmp_path: Path) -> None:
    files = {name: data.loras / f"{name}.safetensors" for name in ("ink", "robot")}
    for folder, source in (("a", "ink"), ("b", "robot")):
        (data.loras / folder).mkdir()
        files[source].rename(data.loras / folder / "style.safetensors")
    loras = [
        {"file": "a/style", "unet_weight": 0.5, "text_encoder_weight": 0.5},
        {"file": "off", "is_on": False},
        {"file": "b/style", "unet_weight": -1.0, "text_encoder_weight": 0.00001},
        {"file": "a/style", "unet_weight": 0.25, "text_encoder_weight": 0.25},
    ]
    wanted = [("a/style", 0.5, 0.5), ("b/style", -1.0, 0.00001), ("a/style", 0.25, 0.25)]
    config = GenerateConfig.model_validate({"prompt": "a", "loras": loras})
    hashes = RecipeHashes(loras=[hashes_of(data.loras / f"{name}.safetensors")[1] for name, _, _ in wanted])
    recipe = Recipe(config, 3, 64, 64, "Inkwash tiny", hashes)
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "own.png", recipe)
    png(tmp_path / "infotext.png", parameters=recipe.infotext())
    for name in ("own", "infotext"):
        found = read_any_recipe(data, tmp_path / f"{name}.png")
        rows = [(lora["file"], lora["unet_weight"], lora["text_encoder_weight"]) for lora in found.settings["loras"]]
        assert (rows, found.missing) == (wanted, ())

    # As it was written before: by name, so that nobody knows any more which was which.
    document = recipe.document() | {"hashes": {"model": "", "loras": {"style": hashes.loras[1]}}}
    found = read_any_recipe(data, png(tmp_path / "old.png", inkwash=json.dumps(document)))
    assert any("Several LoRAs are called 'style'" in note for note in found.notes)


def test_the_vae_comes_back_wherever_it_lies_and_goes_off_where_there_was_none(
    data: DataFolder, tmp_path: Path
) -> None:
    vae = tmp_path / "elsewhere" / "kl-f8.safetensors"
    vae.parent.mkdir()
    save_file({"decoder.conv_in.weight": np.ones((2, 2), np.float16)}, vae)

    def back(name: str, text: str) -> FoundRecipe:
        save_picture(Image.new("RGB", (8, 8)), tmp_path / "own.png", recipe)
        own = read_any_recipe(data, tmp_path / "own.png")
        other = read_any_recipe(data, png(tmp_path / "infotext.png", parameters=text))
        vae_notes = [[note for note in found.notes if "VAE" in note] for found in (own, other)]
        assert (own.settings["vae"], vae_notes[0]) == (other.settings["vae"], vae_notes[1])
        assert own.settings["vae"] == name
        return own

    config = GenerateConfig(vae=str(vae), prediction_type="v_prediction")
    recipe = Recipe(config, 3, 64, 64, "Inkwash tiny", RecipeHashes(vae=file_sha256(vae)))
    assert str(vae.parent) not in json.dumps(recipe.document())
    lost = back("", recipe.infotext())
    assert lost.settings["prediction_type"] == "v_prediction"
    assert any("'kl-f8.safetensors' is not on this computer" in note for note in lost.notes)
    model_sha256(data, vae)  # a picture was made with it here
    assert back(str(vae), recipe.infotext()).settings["vae"] == str(vae)
    # The same name in the data folder, of another content.
    vae.unlink()
    data.models.mkdir()
    save_file({"decoder.conv_in.weight": np.zeros((2, 2), np.float16)}, data.models / vae.name)
    assert any("another version" in note for note in back(str(data.models / vae.name), recipe.infotext()).notes)

    recipe = Recipe(GenerateConfig(), 3, 64, 64, "Inkwash tiny")
    found = back("", recipe.infotext())
    assert (found.settings["vae"], found.settings["prediction_type"]) == ("", "auto")


def test_what_we_write_is_read_back_from_the_infotext_alone(data: DataFolder, tmp_path: Path) -> None:
    loras = [
        {"file": "ink", "unet_weight": 0.8, "text_encoder_weight": 0.25, "blocks": "MIDD", "start": 0.5},
        {"file": "robot", "unet_weight": -0.5, "text_encoder_weight": -0.5},
    ]
    base = {"prompt": 'a "cat", sat\non: a mat', "negative_prompt": "x\ny: z", "loras": loras, "clip_skip": 2}
    hires = {"hires_scale": 1.5, "hires_strength": 0.35, "hires_steps": 12, "seamless": True, "guidance_rescale": 0.7}
    for number, sampler in enumerate(OURS):
        options = {**hires, "hires_upscaler": UPSCALERS[number % 4]} if number % 2 else {}
        options |= {"eta": 0.25} if SAMPLERS[sampler].has_eta else {}
        config = GenerateConfig.model_validate({**base, **options, "sampler": sampler, "guidance_scale": 5.25})
        text = Recipe(config, 2**40, 64, 128, "Inkwash tiny").infotext()
        found = GenerateConfig.model_validate(read_any_recipe(data, png(tmp_path / "a.png", parameters=text)).settings)
        expected = config.model_copy(update={"seed": 2**40, "width": 64, "height": 128})
        assert found == expected


GRAPH: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 156680208700286, "steps": 21, "cfg": 6.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15\\v1-5-pruned.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": ["20", 0], "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["21", 0], "clip": ["12", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "fog", "clip": ["12", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "styles/ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5, "model": ["4", 0], "clip": ["4", 1]}},
    "11": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "lost.safetensors", "strength_model": 0.6, "model": ["10", 0]}},
    "12": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
    "20": {"class_type": "PrimitiveInt", "inputs": {"value": 768}},
    "21": {"class_type": "StringThing", "inputs": {"string": "a red house"}},
    "30": {"class_type": "ControlNetApply", "inputs": {"strength": 1.0}},
}  # fmt: skip


def test_a_graph_of_comfyui(data: DataFolder, tmp_path: Path) -> None:
    found = read_any_recipe(data, png(tmp_path / "a.png", prompt=json.dumps(GRAPH), workflow="{}"))
    settings = found.settings
    assert (settings["prompt"], settings["negative_prompt"], settings["seed"]) == (
        "a red house",
        "fog",
        156680208700286,
    )
    assert (settings["sampler"], settings["num_inference_steps"], settings["guidance_scale"]) == (
        "DPM++ 2M Karras",
        21,
        6.5,
    )
    assert (settings["width"], settings["height"], settings["clip_skip"]) == (512, 768, 2)
    rows = [(lora["file"], lora["unet_weight"], lora["text_encoder_weight"]) for lora in settings["loras"]]
    assert rows == [("ink", 0.8, 0.5), ("lost", 0.6, 0.0)]
    assert found.missing == ("lost",)
    said = "\n".join(found.notes)
    assert "ControlNetApply" in said
    assert "v1-5-pruned" in said
    assert "CLIPTextEncode" not in said


def test_of_two_passes_the_first_counts(data: DataFolder, tmp_path: Path) -> None:
    second = {"class_type": "KSampler", "inputs": {
        "seed": 9, "steps": 5, "cfg": 1, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5,
        "model": ["11", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["2", 0]}}  # fmt: skip
    upscale = {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0], "width": 1024, "height": 1024}}
    graph = {"1": second, "2": upscale, **GRAPH}
    found = read_any_recipe(data, png(tmp_path / "a.png", prompt=json.dumps(graph)))
    assert (found.settings["seed"], found.settings["width"]) == (156680208700286, 512)
    assert found.settings["hires_scale"] == 1.0
    assert any("1 further sampling pass" in note for note in found.notes)


LATENT = {
    "class_type": "LatentUpscaleBy",
    "inputs": {"samples": ["3", 0], "scale_by": 1.5, "upscale_method": "bicubic"},
}
PIXELS = {
    "41": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "42": {
        "class_type": "ImageScale",
        "inputs": {"image": ["41", 0], "width": 1024, "height": 1536, "upscale_method": "area"},
    },
    "43": {"class_type": "VAEEncode", "inputs": {"pixels": ["42", 0], "vae": ["4", 2]}},
}


@pytest.mark.parametrize(
    ("nodes", "last", "expected", "said"),
    [
        ({"43": LATENT}, "43", (1.5, "latent bicubic"), ""),
        (PIXELS, "43", (2.0, "lanczos"), "The upscaler 'area' is not known here"),
    ],
)
def test_a_hires_fix_of_comfyui(
    nodes: dict[str, Any], last: str, expected: tuple[float, str], said: str, data: DataFolder, tmp_path: Path
) -> None:
    second = {**GRAPH["3"]["inputs"], "steps": 5, "denoise": 0.5, "latent_image": [last, 0]}
    graph = {"2": {"class_type": "KSampler", "inputs": second}, **nodes, **GRAPH}
    found = read_any_recipe(data, png(tmp_path / "a.png", prompt=json.dumps(graph)))
    settings = found.settings
    assert (settings["hires_scale"], settings["hires_upscaler"]) == expected
    # There, all 5 steps are done in half of the noise; here half of 10.
    assert (settings["hires_strength"], settings["hires_steps"], settings["num_inference_steps"]) == (0.5, 10, 21)
    assert said in "\n".join(found.notes)
    assert "further" not in "\n".join(found.notes)


def test_comfyui_from_a_picture(data: DataFolder, tmp_path: Path) -> None:
    graph = {
        **GRAPH,
        "3": {
            "class_type": "KSampler",
            "inputs": {**GRAPH["3"]["inputs"], "steps": 10, "denoise": 0.4, "latent_image": ["43", 0]},
        },
        "43": {"class_type": "VAEEncode", "inputs": {"pixels": ["44", 0], "vae": ["4", 2]}},
        "44": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
    }
    found = read_any_recipe(data, png(tmp_path / "a.png", prompt=json.dumps(graph)))
    assert (found.settings["strength"], found.settings["num_inference_steps"]) == (0.4, 25)
    assert any("the picture that it was made from" in note for note in found.notes)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_all_settings_come_back_from_a_file_of_ours(suffix: str, data: DataFolder, tmp_path: Path) -> None:
    data.inputs.mkdir(parents=True)
    for name in ("start.png", "mask.png"):
        Image.new("RGB", (8, 8)).save(data.inputs / name)
    loras = [{"file": "ink", "unet_weight": 0.8, "blocks": "down1:0.5,mid:0", "start": 0.013, "end": 0.5}]
    painted = {"init_image": "start.png", "strength": 0.3, "resize": "stretch", "mask": "mask.png", "mask_blur": 9,
               "masked_area": "only masked", "mask_padding": 5}  # fmt: skip
    larger = {
        "init_image": "start.png",
        "hires_scale": 1.5,
        "hires_strength": 0.35,
        "hires_upscaler": "lanczos",
        "eta": 0.5,
    }
    for options in (painted, larger):
        config = GenerateConfig.model_validate(
            {**options, "prompt": "a", "sampler": "DDIM", "loras": loras, "seamless": True}
        )
        path = tmp_path / f"a.{suffix}"
        save_picture(Image.new("RGB", (8, 8)), path, Recipe(config, 7, 64, 128, "Inkwash tiny"))
        found = read_any_recipe(data, path)
        expected = config.model_copy(update={"seed": 7, "width": 64, "height": 128})
        assert GenerateConfig.model_validate(found.settings) == expected
        assert found.notes == ()


def test_a_start_picture_that_is_not_here_is_named(data: DataFolder, tmp_path: Path) -> None:
    config = GenerateConfig.model_validate(
        {
            "init_image": "cat.png",
            "mask": "cats mask.png",
            "masked_area": "only masked",
            "strength": 0.3,
            "vae": "/home/me/some vae",
        }
    )
    path = save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", Recipe(config, 7, 64, 64, "Inkwash tiny"))
    assert b"/home/me" not in path.read_bytes()
    found = read_any_recipe(data, path)
    settings = GenerateConfig.model_validate(found.settings)
    assert (settings.init_image, settings.mask, settings.masked_area, settings.strength) == (
        "",
        "",
        "whole picture",
        0.3,
    )
    for name in ("cat.png", "cats mask.png", "some vae"):
        assert any(f"'{name}'" in note for note in found.notes)


def test_steps_that_round_to_none_stay_a_share(data: DataFolder, tmp_path: Path) -> None:
    for start, end in ((0.5, 0.51), (0.0, 0.05)):
        config = GenerateConfig.model_validate({"loras": [{"file": "ink", "start": start, "end": end}]})
        text = Recipe(config, 7, 64, 64, "Inkwash tiny").infotext()
        found = read_any_recipe(data, png(tmp_path / "a.png", parameters=text))
        assert [(lora["start"], lora["end"]) for lora in found.settings["loras"]] == [(start, end)]


def test_every_sampler_with_an_eta_has_a_word_for_it() -> None:
    assert {name for name in OURS if eta_name(name)} == {name for name, sampler in SAMPLERS.items() if sampler.has_eta}


def test_comfyui_in_webp(data: DataFolder, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{json.dumps(GRAPH)}"
    exif[0x010F] = "workflow:{}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert read_any_recipe(data, tmp_path / "a.webp").settings["prompt"] == "a red house"


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + "a fox, 狐".encode("utf-16-be"),
        b"UNICODE\0" + "a fox, 狐".encode("utf-16-le"),
        b"UNICODE\0" + "a fox, 狐".encode("utf-16"),
        b"ASCII\0\0\0" + "a fox, 狐".encode(),
        b"\0" * 8 + "a fox, 狐".encode(),
        "a fox, 狐".encode(),
        "a fox, 狐",
    ],
)
def test_user_comments_in_every_code(comment: object) -> None:
    assert decode_user_comment(comment) == "a fox, 狐"


LOOP = {
    "1": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "positive": ["2", 0], "negative": ["1", 0],
                                               "latent_image": ["2", 0], "seed": ["2", 0], "steps": ["1", 0]}},
    "2": {"class_type": "Reroute", "inputs": {"model": ["2", 0], "conditioning": ["2", 0], "seed": ["2", 0], "width": ["2", 0],
                                              "height": ["2", 0]}},
}  # fmt: skip
HOSTILE: dict[str, dict[str, str]] = {
    "a loop": {"prompt": json.dumps(LOOP)},
    "deep": {"prompt": "[" * 100_000},
    "no graph": {"prompt": "[1, 2]"},
    "not finite": {"prompt": json.dumps(GRAPH).replace("512", "1e999").replace("768", "NaN")},
    "commas": {"parameters": "Steps: " + "," * 150_000},
    "blanks": {"parameters": "a\nSteps: 1, a" + " " * 150_000 + ", b"},
    "many keys": {"parameters": "a\nSteps: 1, " + ", ".join(f"k{i}: v" for i in range(15_000))},
    "open quotes": {"parameters": 'a\nSteps: 1, a: "' + 'b: "' * 40_000},
    "brackets": {"parameters": "a\nSteps: 1, Seed: 1, a: " + "[" * 100_000},
    "tags": {"parameters": "<lora:a:1>" * 15_000},
    "some tags": {"parameters": "<lora:a:1>" * 1_000},
    "numbers": {"parameters": f"a\nSteps: {'9' * 10_000}, CFG scale: nan, Seed: 1e999, Size: 999999x999999, Sampler: x"},
    "many lines": {"parameters": "Steps: 1, Seed: 2\n" * 10_000},
    "resources": {"parameters": 'a\nSteps: 1, Seed: 1, CFG scale: 1, Civitai resources: [1, {"type": "lora", "modelName": "x", "weight": []}]'},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_end_soon_in_a_sentence_or_in_settings(name: str, data: DataFolder, tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", **HOSTILE[name])
    started = time.monotonic()
    with suppress(ConfigError):
        GenerateConfig.model_validate(read_any_recipe(data, path).settings)
    assert time.monotonic() - started < 5


def test_an_infotext_of_endless_length_is_none(data: DataFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe"):
        read_any_recipe(data, png(tmp_path / "a.png", parameters="a" * (MAX_CHARACTERS + 1)))
    with pytest.raises(ValueError, match="no infotext"):
        parse_infotext("a" * (MAX_CHARACTERS + 1))


def test_a_file_that_is_no_picture_is_told(data: DataFolder, tmp_path: Path) -> None:
    for name, content in {
        "a.png": b"\x89PNG\r\n\x1a\n",
        "b.jpg": b"\xff\xd8\xff\xe1\xff\xff",
        "c.webp": b"RIFF",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read"):
            read_any_recipe(data, tmp_path / name)
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.jpg")
    with pytest.raises(ConfigError, match="no recipe in this picture"):
        read_any_recipe(data, tmp_path / "plain.jpg")


def test_settings_are_quoted_and_come_back() -> None:
    values = {"Steps": "1", "Model": 'a, "b": c', "Path": "c:\\new", "Prompt 2": "x\ny", "List": "[1, 2]"}
    assert parse_settings(write_infotext("", "", values).strip()) == values
    assert parse_hashes(
        parse_infotext('a\nSteps: 1, Hashes: {"model": "1", "lora:x": "abc"}, Lora hashes: "y: def"')
    ) == {
        "x": "abc",
        "y": "def",
    }


def test_samplers_go_there_and_back() -> None:
    for name in OURS:
        assert find_sampler(*split_sampler(name)) == (name, "")
    assert find_comfy_sampler("euler_ancestral", "normal") == ("Euler a", "")
    assert find_comfy_sampler("dpmpp_2m_sde_gpu", "karras") == ("DPM++ 2M SDE Karras", "")
    assert find_sampler("Restart")[0] == ""
