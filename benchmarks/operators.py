"""What a training step of SD 1.5's UNet does beside its matrix products: how many operators, and how many bytes they move.

    python benchmarks/operators.py                      (512 px, batch 1, attention layers, rank 8)
    python benchmarks/operators.py --resolution 256 --targets all+conv
    python benchmarks/operators.py --rows floor inkwash --blocks "*: rank=0" --blocks "up_blocks.*: rank=8"     (late blocks only)

Nothing is computed: tensors without data go through the forward and the backward pass of the full architecture, and every
operator is counted that torch dispatches. So there is no noise, and it takes seconds on any machine. Views, which do nothing,
and allocations are not counted; matrix products, convolutions and attention are counted apart. The bytes of an operator are
those of the tensors that it reads and writes. Products are counted, and their floating-point operations (two for a multiplication
and an addition). Rows:

    floor         the frozen UNet with gradients for its inputs, without any adapter
    inkwash       ours, as a training run has it
    beside        ours beside bases whose product is not to be touched (quantised, offloaded)
    each alone    ours, each layer casting its own weights (as with the fused backward pass)
    peft          diffusers' script: peft's layers with float32 weights
    peft autocast the same under autocast, as accelerate prepares it
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "linear")
_NOTHING = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "detach",
    "alias",
    "_local_scalar_dense",
    "new_empty_strided",
)


@dataclass
class Counts:
    """Operators beside the matrix products, the bytes that they move, the products, and the floating-point operations of these."""

    operators: int = 0
    num_bytes: int = 0
    products: int = 0
    flops: int = 0
    names: Counter[str] = field(default_factory=Counter)


class Counting(TorchDispatchMode):
    """Counts what is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operator and do it."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if (
            name.startswith("prim::")
            or func.is_view
            or name.rstrip("_") in _NOTHING
            or name in _NOTHING
            or name == "_unsafe_view"
        ):
            return result
        if name.rstrip("_") in _PRODUCTS or "scaled_dot_product" in name:
            self.counts.products += 1
            return result
        self.counts.operators += 1
        self.counts.names[name] += 1
        tensors = [t for t in pytree.tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        self.counts.num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def empty_unet(dtype: torch.dtype) -> Any:
    """SD 1.5's UNet, frozen."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = json.loads((PROJECT / "assets/configs/sd1/unet/config.json").read_text(encoding="utf-8"))
    # Tensors without data cannot change their number format in place, so they are made in it.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return cast(Any, UNet2DConditionModel.from_config(config)).requires_grad_(False).train()
    finally:
        torch.set_default_dtype(before)


def attach_ours(unet: Any, options: argparse.Namespace, dtype: torch.dtype) -> None:
    """Our LoRA."""
    from trainer.adapters.lora import LoraMethod
    from trainer.adapters.lora_layer import PLAIN_TENSORS
    from trainer.config.adapter import AdapterConfig, UnetLora
    from trainer.models.neutral import skip_neutral_divisions
    from trainer.models.sd1 import StableDiffusion1

    PLAIN_TENSORS.add(FakeTensor)
    part = UnetLora(rank=options.rank, alpha=float(options.rank), targets=options.targets)
    config = AdapterConfig(unet=part, blocks=options.blocks)
    family, device = StableDiffusion1(), torch.device("cpu")
    parts = SimpleNamespace(
        unet=unet, adaptable={"unet": unet}, family=family, device=device, dtype=dtype, text_encoders={}
    )
    LoraMethod(config).attach(cast(Any, parts), seed=0)
    skip_neutral_divisions(unet)


def attach_peft(unet: Any, options: argparse.Namespace) -> None:
    """diffusers' and peft's LoRA on the same layers, its weights in float32."""
    from peft import LoraConfig

    from trainer.config.adapter import AdapterConfig, UnetLora
    from trainer.config.blocks import choose_layer
    from trainer.models.unet_family import unet_targets

    config = AdapterConfig(unet=UnetLora(rank=options.rank), blocks=options.blocks)
    paths = [path for path in unet_targets(unet, options.targets) if choose_layer(config, f"unet.{path}", (1, 1)).rank]
    # It would bring the weights to the base's number format, and the script those back to float32; tensors without data
    # cannot be changed so.
    with patch.object(nn.Module, "to", lambda module, *_, **__: module):
        unet.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=paths))


def wait_for_each(unet: nn.Module) -> None:
    """Ask for each gradient as soon as it is there."""
    for weight in unet.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda _: None)


def leave_bases(unet: nn.Module) -> None:
    """Give each base a hook, as offloading does."""
    from trainer.adapters.lora_layer import LoraLayer

    for layer in unet.modules():
        if isinstance(layer, LoraLayer):
            layer.base.register_forward_hook(lambda *_: None)


@contextmanager
def _surroundings(row: str, dtype: torch.dtype) -> Iterator[None]:
    with torch.autocast("cpu", dtype) if row == "peft autocast" else nullcontext():
        yield


def count(row: str, options: argparse.Namespace) -> Counts:
    """The operators of a forward and backward pass of one row."""
    dtype, side = DTYPES[options.precision], options.resolution // 8
    with FakeTensorMode(allow_non_fake_inputs=True):
        unet = empty_unet(dtype)
        if row.startswith("peft"):
            attach_peft(unet, options)
        elif row != "floor":
            attach_ours(unet, options, dtype)
        if row == "each alone":
            wait_for_each(unet)
        if row == "beside":
            leave_bases(unet)
        size = options.batch_size
        latents = torch.randn(size, 4, side, side, dtype=dtype)
        states = torch.randn(size, 77, unet.config.cross_attention_dim, dtype=dtype)
        times = torch.zeros(size, dtype=torch.int64)
        # Where an adapter's gradients begin: the first trained layers stand at the first attention.
        latents.requires_grad_(row == "floor")
        # The counter of operations takes some operators apart; ours is to see them whole, and comes first.
        with FlopCounterMode(display=False) as flops, Counting() as mode:
            with _surroundings(row, dtype):
                output = unet(latents, times, encoder_hidden_states=states, return_dict=False)[0]
            output.float().square().mean().backward()
        mode.counts.flops = flops.get_total_flops()
    return mode.counts


ROWS = ("floor", "inkwash", "beside", "each alone", "peft", "peft autocast")


def main() -> int:
    """Count and print a table."""
    from trainer.models.devices import dtype_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--targets", default="attention", choices=["attention", "attention+mlp", "all-linear", "all+conv"]
    )
    parser.add_argument("--blocks", action="append", default=[], metavar="RULE", help="as adapter.blocks")
    parser.add_argument("--precision", default="bf16", choices=list(DTYPES))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW")
    parser.add_argument("--names", action="store_true", help="also the operators by name")
    options = parser.parse_args()
    found = {row: count(row, options) for row in dict.fromkeys([*options.rows, "peft"])}
    print(
        f"{options.resolution} px, batch {options.batch_size}, rank {options.rank}, {dtype_name(DTYPES[options.precision])}\n"
    )
    print("| | operators | of peft | MB | of peft | products | TFLOP |\n|---|---|---|---|---|---|---|")
    peer = found["peft"]
    for row, counts in found.items():
        share, moved = counts.operators / peer.operators, counts.num_bytes / peer.num_bytes
        print(
            f"| {row} | {counts.operators} | {share:.2f} | {counts.num_bytes / 1e6:.0f} | {moved:.2f} | {counts.products} "
            f"| {counts.flops / 1e12:.3f} |"
        )
        if options.names:
            print("  " + ", ".join(f"{name} {number}" for name, number in counts.names.most_common(25)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
