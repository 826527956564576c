"""Files of the LyCORIS library, kind by kind: what it says that they change is what we read, on linear layers and convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris import modules as lycoris
from safetensors.torch import save_file
from torch import nn

from trainer.lora_files.file import read_lora

NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
IN, OUT = 24, 32
LAYERS: dict[str, Any] = {
    "linear": lambda: nn.Linear(IN, OUT, bias=False),
    "conv 1x1": lambda: nn.Conv2d(IN, OUT, 1, bias=False),
    "conv 3x3": lambda: nn.Conv2d(IN, OUT, 3, padding=1, bias=False),
}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LoCon": (lycoris.LoConModule, {}),
    "LoCon, alpha": (lycoris.LoConModule, {"alpha": 2.0}),
    "LoCon, rsLoRA": (lycoris.LoConModule, {"alpha": 2.0, "rs_lora": True}),
    "LoCon, Tucker": (lycoris.LoConModule, {"use_tucker": True}),
    "LoCon, scalar": (lycoris.LoConModule, {"use_scalar": True}),
    "DoRA by output": (lycoris.LoConModule, {"weight_decompose": True, "wd_on_out": True}),
    "DoRA by input": (lycoris.LoConModule, {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": (lycoris.LohaModule, {"alpha": 2.0}),
    "LoHa, Tucker": (lycoris.LohaModule, {"use_tucker": True}),
    "LoHa with DoRA": (lycoris.LohaModule, {"weight_decompose": True}),
    "LoKr": (lycoris.LokrModule, {"alpha": 2.0, "factor": 4}),
    "LoKr, both low-rank": (lycoris.LokrModule, {"lora_dim": 2, "factor": 4, "decompose_both": True}),
    "LoKr, full matrices": (lycoris.LokrModule, {"lora_dim": 10000, "factor": 4, "full_matrix": True}),
    "LoKr, Tucker": (lycoris.LokrModule, {"lora_dim": 2, "factor": 4, "use_tucker": True}),
    "LoKr with DoRA": (lycoris.LokrModule, {"factor": 4, "weight_decompose": True}),
    "Full": (lycoris.FullModule, {}),
    "(IA)3 by output": (lycoris.IA3Module, {"train_on_input": False}),
    "(IA)3 by input": (lycoris.IA3Module, {"train_on_input": True}),
    "Diag-OFT": (lycoris.DiagOFTModule, {"lora_dim": 4}),
    "Diag-OFT, scaled": (lycoris.DiagOFTModule, {"lora_dim": 4, "rescaled": True}),
    "BOFT": (lycoris.ButterflyOFTModule, {"lora_dim": 4}),
}


def random_module(kind: str, layer: nn.Module) -> Any:
    """A module of the library around `layer`, as after some training."""
    made, options = KINDS[kind]
    module = made(NAME, layer, **{"lora_dim": 4, "alpha": 4.0, **options}).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "dora_scale" in name:  # near the norms that it began with
                weight.mul_(1 + 0.2 * torch.rand(weight.shape, generator=generator))
            else:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return module


@pytest.mark.parametrize("shape", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_their_file_gives_what_their_module_gives(tmp_path: Path, kind: str, shape: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[shape]()
    original = layer.weight.detach().clone()
    module = random_module(kind, layer)
    inputs = torch.randn(3, 5, IN) if isinstance(layer, nn.Linear) else torch.randn(2, IN, 5, 7)
    with torch.no_grad():
        plain = layer(inputs)
        # Their own merging counts the scale twice in some kinds (4.1.3); what they train with is `forward`.
        module.apply_to()
        theirs = layer(inputs)
    assert (theirs - plain).abs().max() > 1e-3
    state = {f"{NAME}.{part}": tensor.detach().clone().contiguous() for part, tensor in module.state_dict().items()}
    save_file(state, tmp_path / "theirs.safetensors")
    found = read_lora(tmp_path / "theirs.safetensors").modules
    assert found.keys() == {NAME}
    changed = LAYERS[shape]()
    with torch.no_grad():
        changed.weight.copy_(original + found[NAME].delta_weight(original))
        torch.testing.assert_close(changed(inputs), theirs, atol=1e-4, rtol=1e-4)
