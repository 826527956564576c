"""A complete Stable Diffusion folder with random weights, so small that tests make and train it in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TEXT_WIDTH = 32
TEXT_WIDTH_2 = 16
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def make_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    vae_blocks: int = 3,
    sample_size: int = 16,
    family: str = "sd1",
    scheduler: dict[str, Any] | None = None,
    in_channels: int = 4,
) -> Path:
    """Save a random-weight model in `folder` and return it.

    Args:
        folder: made when missing.
        seed: of the weights.
        vae_blocks: 3 makes a VAE that shrinks pictures 4 times, 4 one that shrinks them 8 times.
        sample_size: side of the UNet's latents; the model's own resolution is this times the VAE's factor.
        family: "sd1", "sd2" or "sdxl": the component classes and what tells them apart.
        scheduler: changes of the scheduler's configuration, such as its prediction type.
        in_channels: of the UNet; 9 makes an inpainting model.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary_size = _save_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8,) * (vae_blocks - 1) + (16,),
            down_block_types=("DownEncoderBlock2D",) * vae_blocks,
            up_block_types=("UpDecoderBlock2D",) * vae_blocks,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=sample_size * 2 ** (vae_blocks - 1),
            scaling_factor=0.5,
        )
        unet = UNet2DConditionModel(
            in_channels=in_channels,
            sample_size=sample_size,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            **_unet_options(family),
        )
        text_encoder = CLIPTextModel(_text_config(vocabulary_size, TEXT_WIDTH))
        if family == "sdxl":
            text_encoder_2 = CLIPTextModelWithProjection(_text_config(vocabulary_size, TEXT_WIDTH_2))
            text_encoder_2.save_pretrained(folder / "text_encoder_2")
            _save_tokenizer(folder / "tokenizer_2", pad="a")
    noise = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")
    noise.save_pretrained(folder / "scheduler")
    if scheduler:
        path = folder / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **scheduler}))
    _save_index(folder, has_two=family == "sdxl")
    return folder


def _unet_options(family: str) -> dict[str, Any]:
    if family == "sd1":
        return {"cross_attention_dim": TEXT_WIDTH}
    if family == "sd2":
        return {"cross_attention_dim": TEXT_WIDTH, "use_linear_projection": True}
    return {
        "cross_attention_dim": TEXT_WIDTH + TEXT_WIDTH_2,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": TEXT_WIDTH_2 + 6 * 8,
    }


def _text_config(vocabulary_size: int, width: int) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=vocabulary_size - 2,
        eos_token_id=vocabulary_size - 1,
        pad_token_id=vocabulary_size - 1,
    )


def _save_tokenizer(folder: Path, pad: str = EOS) -> int:
    """A byte-level CLIP tokenizer that knows a few whole words; returns its number of tokens."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    alphabet = [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]
    merges: list[tuple[str, str]] = []
    for word in ("red", "blue", "house", "tree", "ink", "zib", "robot"):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
    entries = [*alphabet, *(char + "</w>" for char in alphabet), *(a + b for a, b in merges), BOS, EOS]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=EOS, bos_token=BOS, eos_token=EOS, pad_token=pad, model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def _save_index(folder: Path, *, has_two: bool) -> None:
    second = {
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "force_zeros_for_empty_prompt": True,
    }
    index = {
        "_class_name": "StableDiffusionXLPipeline" if has_two else "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **(second if has_two else {}),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
