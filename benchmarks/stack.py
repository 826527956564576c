"""Several LoRAs at once: our merged weights against diffusers' adapters, side by side, results compared.

    python -m benchmarks.stack                        a UNet of middle size, for two cores
    python -m benchmarks.stack --sd15                 the architecture of Stable Diffusion 1.5 with random weights
    python -m benchmarks.stack --sd15 --dtype bf16    the same in bf16
    python -m benchmarks.stack --costs                what a scheduled LoRA costs merged and beside the weights

Prints ratios; absolute times depend on the machine. Both sides get the same files and must give the same output. Goals: a
step with 5 LoRAs at most 1.02 times one without; a change of a weight at most 1/10 of diffusers' unfuse + fuse; a file in
effect in at most 1/5 of the time of diffusers' loader; no drift.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from tests.random_lora import modules_for
from tests.tiny_model import TEXT_WIDTH, make_tiny_model
from trainer.lora_files.file import LoraModule, write_lora
from trainer.lora_files.matching import adaptable_shapes
from trainer.models.components import Components, load_components
from trainer.paths import DataFolder
from trainer.sampling.stack import LayerSum, LoraStack, StackEntry

ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".proj_in", ".proj_out", ".proj", ".net.2")
RANK, ALPHA = 16, 8.0
COUNTS = [0, 1, 3, 5, 10]
CLOCK: list[Callable[[], float]] = [time.perf_counter]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_model(folder: Path, is_sd15: bool) -> Path:
    """A folder with a UNet worth measuring; the text encoder and VAE stay tiny, they take no part."""
    make_tiny_model(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"block_out_channels": (64, 128, 256, 256), "attention_head_dim": 8, "sample_size": 32}
    if is_sd15:
        sizes = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "sample_size": 64}
    UNet2DConditionModel(cross_attention_dim=TEXT_WIDTH, **sizes).save_pretrained(folder / "unet")
    return folder


def best_seconds(repeats: int, *actions: Callable[[], object]) -> list[float]:
    """The shortest time of each action. They take turns, so that a busy machine slows all alike; one run warms up."""
    rounds = [[_seconds(action) for action in actions] for _ in range(repeats + 1)][1:]
    return [min(times) for times in zip(*rounds, strict=True)]


def _seconds(action: Callable[[], object]) -> float:
    started = CLOCK[0]()
    action()
    return CLOCK[0]() - started


class Sides:
    """The same base model twice, for diffusers and for us, and LoRA files for both."""

    def __init__(self, folder: Path, num_loras: int, dtype: torch.dtype = torch.float32, pixels: int = 0) -> None:
        self.components: Components = load_components(
            str(folder), DataFolder(folder.parent), torch.device("cpu"), dtype
        )
        self.pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype)
        self.stack = LoraStack(self.components)
        shapes = adaptable_shapes(self.components.adaptable)
        chosen = {
            path: shape for path, shape in shapes.items() if path.startswith("unet.") and path.endswith(ATTENTION)
        }
        self.files: list[Path] = []
        for index in range(num_loras):
            path = folder.parent / f"lora{index}.safetensors"
            write_lora(path, modules_for(chosen, rank=RANK, alpha=ALPHA, seed=index, size=0.05), {}, "fp32")
            self.files.append(path)
        self._chosen = list(chosen)
        config = self.components.unet.config
        generator = torch.Generator().manual_seed(0)
        side = pixels // 8 or config.sample_size
        self.latents = torch.randn((2, 4, side, side), generator=generator).to(dtype)
        self.states = torch.randn((2, 77, config.cross_attention_dim), generator=generator).to(dtype)

    @cached_property
    def base(self) -> UNet2DConditionModel:
        """Our side's model without LoRAs, to stay so."""
        self.stack.clear()
        return copy.deepcopy(self.components.unet)

    def touched(self) -> list[Tensor]:
        """Our side's weights that the LoRAs change."""
        modules = dict(self.components.unet.named_modules())
        return [modules[path.removeprefix("unet.")].weight.detach() for path in self._chosen]

    def step(self, unet: UNet2DConditionModel) -> Tensor:
        """One guided denoising step's call of the UNet."""
        with torch.no_grad():
            return unet(self.latents, torch.tensor(500), encoder_hidden_states=self.states).sample

    def use(self, count: int, weight: float = 0.7) -> None:
        """Our side: the first LoRAs, the first of them with `weight`."""
        weights = [weight] + [0.7] * (count - 1)
        self.stack.set(
            [StackEntry(path, value, value) for path, value in zip(self.files[:count], weights, strict=False)]
        )

    def use_diffusers(self, count: int, weight: float = 0.7) -> None:
        """diffusers' side, unfused."""
        for index in range(count):
            if f"a{index}" not in self.pipeline.get_list_adapters().get("unet", []):
                self.load_diffusers(index)
        if count:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters([f"a{i}" for i in range(count)], [weight] + [0.7] * (count - 1))

    def load_diffusers(self, index: int) -> None:
        """Load a file with diffusers' own loader."""
        self.pipeline.load_lora_weights(
            str(self.files[index].parent), weight_name=self.files[index].name, adapter_name=f"a{index}"
        )

    def fuse_diffusers(self, count: int, weight: float) -> None:
        """diffusers' way to be as fast as merged: unfuse, set the weights, fuse."""
        self.pipeline.unfuse_lora(components=["unet"])
        self.use_diffusers(count, weight)
        self.pipeline.fuse_lora(components=["unet"], adapter_names=[f"a{i}" for i in range(count)])

    def require_equal(self) -> None:
        """Both sides must give the same output."""
        ours, theirs = self.step(self.components.unet).float(), self.step(self.pipeline.unet).float()
        if self.components.dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)
        elif float((ours - theirs).norm() / theirs.norm()) > 0.05:
            raise SystemExit("the two sides differ by more than rounding")


def measure_steps(sides: Sides, repeats: int, say: Callable[[str], object]) -> None:
    """Time of a denoising step with 0 to 10 LoRAs, relative to one of an untouched base model beside it.

    Said is the median of the ratios of steps taken side by side, and in which range the middle half of them lies: without
    LoRAs both are the same model, so that row shows how much is noise.
    """
    say("LoRAs  ours, middle half  diffusers set_adapters   (times the step without)")
    for count in COUNTS:
        sides.use(count)
        sides.use_diffusers(count)
        sides.require_equal()
        ours = side_by_side(repeats, lambda: sides.step(sides.components.unet), lambda: sides.step(sides.base))
        low, middle, high = quantiles(ours, n=4)
        theirs = median(side_by_side(repeats, lambda: sides.step(sides.pipeline.unet), lambda: sides.step(sides.base)))
        say(f"{count:5d}  {middle:5.3f}, {low:5.3f} to {high:5.3f}  {theirs:4.2f}")


def side_by_side(repeats: int, one: Callable[[], object], other: Callable[[], object]) -> list[float]:
    """`repeats` ratios of the times of two actions. Who begins changes, so that what a machine does in between favours none."""
    ratios: list[float] = []
    for turn in range(repeats + 1):
        first, second = (one, other) if turn % 2 else (other, one)
        times = {first: _seconds(first), second: _seconds(second)}
        ratios.append(times[one] / times[other])
    return ratios[1:]


def measure_changes(sides: Sides, repeats: int, say: Callable[[str], object]) -> None:
    """Time to change one LoRA's weight, with 1 to 10 merged.

    Beside them the least that a change can take: each weight is read once, from the originals, and written once.
    """
    weights = sides.touched()
    copies = [torch.empty_like(weight) for weight in weights]

    def copy_all() -> None:
        for new, old in zip(copies, weights, strict=True):
            new.copy_(old)

    say("LoRAs  change of a weight: ours  diffusers unfuse + fuse  a copy  (ms; shares: ours, the copy)")
    for count in filter(None, COUNTS):
        values = iter(0.3 + 0.01 * index for index in range(10_000))
        ours, theirs, least = best_seconds(
            repeats,
            lambda n=count, v=values: sides.use(n, next(v)),
            lambda n=count, v=values: sides.fuse_diffusers(n, next(v)),
            copy_all,
        )
        sides.use(count, 0.9)
        sides.fuse_diffusers(count, 0.9)
        sides.require_equal()
        say(
            f"{count:5d}  {ours * 1000:6.0f}  {theirs * 1000:6.0f}  {least * 1000:6.0f}   {ours / theirs:.2f}  {least / theirs:.2f}"
        )
    sides.pipeline.unfuse_lora(components=["unet"])


def measure_loading(sides: Sides, repeats: int, say: Callable[[str], object]) -> None:
    """Time from a file that is not in memory to an effective LoRA."""
    sides.pipeline.unload_lora_weights()
    sides.stack.clear()

    def ours() -> None:
        sides.stack.clear()
        sides.stack.forget()
        sides.use(1)

    def theirs() -> None:
        sides.pipeline.unload_lora_weights()
        sides.load_diffusers(0)

    our_time, their_time = best_seconds(repeats, ours, theirs)
    say(
        f"file to effect: ours {our_time * 1000:.0f} ms, diffusers {their_time * 1000:.0f} ms, share {our_time / their_time:.2f}"
    )


def require_exact_restore(sides: Sides, say: Callable[[str], object]) -> None:
    """Many changes, then nothing: the base model must be there to the last bit."""
    sides.stack.clear()
    before = {key: value.clone() for key, value in sides.components.unet.state_dict().items()}
    for cycle in range(100):
        sides.use(1 + cycle % 2, cycle / 50)
    sides.stack.clear()
    drift = max(float((value - before[key]).abs().max()) for key, value in sides.components.unet.state_dict().items())
    say(f"drift after 100 changes: {drift:g}")
    if drift:
        raise SystemExit("the base model has changed")


def measure_costs(say: Callable[[str], object], device: str) -> None:
    """The figures of `trainer.sampling.schedule.Costs` on this machine."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(action: Callable[[], object]) -> float:
        return best_seconds(30, lambda: (action(), wait()))[0]

    def merge(side: int) -> float:
        layer = LayerSum([LoraModule(torch.ones(RANK, side), torch.ones(side, RANK), 1.0)], torch.device(device))
        weight, original = torch.zeros(side, side, device=device), torch.zeros(side, side)
        return seconds(lambda: layer.merge(weight, original.to(device), [0.5]))

    def beside(places: int, side: int, rank: int) -> float:
        inputs, output = torch.zeros(places, side, device=device), torch.zeros(places, side, device=device)
        down, up = torch.zeros(rank, side, device=device), torch.zeros(side, rank, device=device)
        linear = torch.nn.functional.linear
        return seconds(lambda: output + linear(linear(inputs, down), up))

    call, small, large = beside(1, 64, 4), beside(4096, 640, 4), beside(4096, 640, 132)
    products = 4096 * 2 * 640 * 128
    per_product = (large - small) / products
    output = max(small - call - per_product * products / 32, 0.0) / (4096 * 640)
    say(f"merge_layer {merge(8):.1e}  merge_element {merge(1280) / 1280**2:.1e}")
    say(f"beside_layer {call:.1e}  beside_product {per_product:.1e}  beside_output {output:.1e}")


def main() -> None:
    """Run all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd15", action="store_true", help="full size; needs about 10 GB of memory")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--costs", action="store_true", help="only measure the two ways of a LoRA that comes and goes")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count the processor's time: for machines where others work, too"
    )
    parser.add_argument("--only", choices=("steps", "changes", "loading", "drift"), help="one measurement alone")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--pixels", type=int, default=0, help="side of the picture; 0 for the model's own")
    parser.add_argument("--loras", type=int, nargs="+", default=COUNTS, help="numbers of LoRAs to measure with")
    options = parser.parse_args()
    COUNTS[:] = options.loras

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    if options.cpu_time:
        CLOCK[0] = time.process_time
    if options.costs:
        measure_costs(say, "cuda" if torch.cuda.is_available() else "cpu")
        return
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="peft")
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model", options.sd15)
        sides = Sides(model, num_loras=max(1, *COUNTS), dtype=DTYPES[options.dtype], pixels=options.pixels)
        for name, measure in (("steps", measure_steps), ("changes", measure_changes), ("loading", measure_loading)):
            if options.only in (None, name):
                measure(sides, options.repeats, say)
        if options.only in (None, "drift"):
            require_exact_restore(sides, say)


if __name__ == "__main__":
    main()
