"""Merging two LoRAs of SDXL's full key set: our low-rank algebra against a dense SVD of the summed changes.

    python -m benchmarks.lora_merge               rank 64 and 64 to rank 32, whole file; dense SVD on a sample of layers
    python -m benchmarks.lora_merge --sample 8    more layers for the dense side

Prints times, the peak memory, and the ratio on the same layers; absolute times depend on the machine. Both sides must
give the same change.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trainer.lora_files.file import LoraModule, write_lora
from trainer.lora_tools.changes import Change
from trainer.lora_tools.compress import compress_layer
from trainer.lora_tools.inputs import open_lora
from trainer.lora_tools.lowrank import LowRank, concatenate
from trainer.lora_tools.merge import MergeInput, MergeOptions, merge_loras
from trainer.lora_tools.names import xl_name
from trainer.lora_tools.truncation import Truncation

WEIGHTS = (0.8, -0.5)


def sdxl_shapes() -> dict[str, tuple[int, ...]]:
    """Name and weight's shape of the 986 layers of a default SDXL LoRA: 722 in the UNet, 264 in the text encoders."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    shapes: dict[str, tuple[int, ...]] = {
        xl_name(f"lora_unet_{path.replace('.', '_')}"): tuple(module.weight.shape)
        for path, module in unet.named_modules()
        if isinstance(module, nn.Linear) and ".attentions." in path
    }
    for prefix, layers, width in (("lora_te1", 12, 768), ("lora_te2", 32, 1280)):
        for layer in range(layers):
            start = f"{prefix}_text_model_encoder_layers_{layer}"
            shapes |= {f"{start}_self_attn_{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
            shapes |= {f"{start}_mlp_fc1": (4 * width, width), f"{start}_mlp_fc2": (width, 4 * width)}
    return shapes


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]], rank: int, seed: int) -> None:
    """A LoRA file in fp16 whose singular values fall, as those of trained ones do."""
    generator = torch.Generator().manual_seed(seed)
    fall = torch.logspace(0, -2, rank)
    modules = {
        name: LoraModule(
            (torch.randn((rank, shape[1]), generator=generator) * fall[:, None] * 0.05).half(),
            (torch.randn((shape[0], rank), generator=generator) * 0.05).half(),
            rank / 2,
        )
        for name, shape in shapes.items()
    }
    write_lora(path, modules, {"ss_base_model_version": "sdxl_base_v1-0"}, "fp16")


def peak_memory_gb() -> float:
    """The most memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def compare_with_dense(files: list[Path], rank: int, sample: int, say: Callable[[str], object]) -> None:
    """The same layers by both ways, interleaved; times, and the difference of what comes out."""
    loras = [open_lora(path) for path in files]
    names = sorted(loras[0].modules)[:: max(1, len(loras[0].modules) // sample)][:sample]
    say(f"{sample} layers, each both ways:\nshape  ours (ms)  dense (ms)  dense / ours  difference of the errors")
    ratios: list[float] = []
    for name in names:
        changes = [lora.change(name) for lora in loras]
        parts = [
            (change.matrix, weight)
            for change, weight in zip(changes, WEIGHTS, strict=True)
            if isinstance(change.matrix, LowRank)
        ]
        started = time.perf_counter()
        merged = Change(concatenate(parts), changes[0].shape)
        module, figures = compress_layer(name, merged, Truncation("rank", rank), float(rank), torch.float32)
        ours = time.perf_counter() - started
        started = time.perf_counter()
        dense = sum(part.dense() * weight for part, weight in parts)
        assert isinstance(dense, torch.Tensor)
        left, values, right = torch.linalg.svd(dense, full_matrices=False)
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        theirs = time.perf_counter() - started
        up, down = module.factors()
        difference = abs(float((dense - up @ down).norm() - (dense - best).norm()) / float(dense.norm()))
        ratios.append(theirs / ours)
        say(
            f"{changes[0].shape}  {ours * 1000:.0f}  {theirs * 1000:.0f}  {theirs / ours:.0f}  {difference:.1e} (error {figures.error:.3f})"
        )
        if difference > 1e-4:
            raise SystemExit("the two ways give different results")
    say(f"median of dense / ours: {statistics.median(ratios):.0f}")


def main() -> None:
    """Run both measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=64, help="of both files")
    parser.add_argument("--to", type=int, default=32, help="of the result")
    parser.add_argument("--sample", type=int, default=4, help="layers for the dense SVD")
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory() as name:
        shapes = sdxl_shapes()
        files = [Path(name) / f"{seed}.safetensors" for seed in range(2)]
        for seed, file in enumerate(files):
            write_random(file, shapes, options.rank, seed)
        before = peak_memory_gb()
        inputs = [MergeInput(file, weight) for file, weight in zip(files, WEIGHTS, strict=True)]
        report = merge_loras(
            inputs, Path(name) / "merged.safetensors", MergeOptions(truncation=Truncation("rank", options.to))
        )
        say(
            f"{report.layers} layers, rank {options.rank} + {options.rank} to {options.to}: {report.seconds:.1f} s on "
            f"{torch.get_num_threads()} threads, error {report.error:.3f}, file {report.size_bytes / 1e6:.0f} MB"
        )
        say(f"peak memory {peak_memory_gb():.2f} GB (before the merge, making the files: {before:.2f} GB)")
        compare_with_dense(files, options.to, options.sample, say)


if __name__ == "__main__":
    main()
