"""A complete Stable Diffusion 1.x folder with random weights, so small that tests make and train it in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch

TEXT_WIDTH = 32
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def make_tiny_model(folder: Path, *, seed: int = 0, vae_blocks: int = 3, sample_size: int = 16) -> Path:
    """Save a random-weight model in `folder` and return it.

    Args:
        folder: made when missing.
        seed: of the weights.
        vae_blocks: 3 makes a VAE that shrinks pictures 4 times, 4 one that shrinks them 8 times.
        sample_size: side of the UNet's latents; the model's own resolution is this times the VAE's factor.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_pndm import PNDMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel

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
            sample_size=sample_size,
            block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=TEXT_WIDTH,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary_size,
                hidden_size=TEXT_WIDTH,
                intermediate_size=2 * TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=vocabulary_size - 2,
                eos_token_id=vocabulary_size - 1,
                pad_token_id=vocabulary_size - 1,
            )
        )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    vae.save_pretrained(folder / "vae")
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / "text_encoder")
    scheduler.save_pretrained(folder / "scheduler")
    _save_index(folder)
    return folder


def _save_tokenizer(folder: Path) -> int:
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
        vocab=vocabulary, merges=merges, unk_token=EOS, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=77
    )
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def _save_index(folder: Path) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
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
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
