"""The last words of a key: which part of a layer's change a tensor is. The same in all layouts of names."""

from __future__ import annotations

import re

Part = str
"""A part's name as the kohya layout writes it ("lora_down.weight", "alpha", "hada_w1_a", …)."""
MAGNITUDE: Part = "lora_magnitude_vector"
"""peft's name of DoRA's magnitudes, which are always of the output channels; kohya's is `dora_scale`."""
IA3_FACTOR: Part = "ia3_l"
"""peft's numbers of (IA)³, which multiply the weight as they are; kohya's (`weight`) are added to 1."""

_SIDES = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
_PEFT_SIDES = {"A": "lora_down.weight", "B": "lora_up.weight"}
_VERBATIM = (
    "alpha", "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1",
    "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "oft_blocks", "oft_diag", "rescale", "diff",
    "diff_b", "w_norm", "b_norm", "on_input", IA3_FACTOR,
)  # fmt: skip
# `.default`: a peft adapter's name, in files that hold its raw state.
_ADAPTER = r"(?:\.default)?"
_KEY = re.compile(
    r"(?P<module>.+?)(?:"
    r"[._]lora\.(?P<script>down|up)\.weight"
    r"|\.lora_linear_layer\.(?P<linear>down|up)\.weight"
    r"|\.lora_(?P<kohya>down|up|mid)\.weight"
    r"|\.lora_(?P<peft>[AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
    rf"|\.(?P<magnitude>lora_magnitude_vector)(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
    rf"|\.(?P<rotation>oft_R){_ADAPTER}\.weight"
    rf"|\.(?P<verbatim>{'|'.join(_VERBATIM)}){_ADAPTER}"
    r"|\.(?P<weight>weight))"
)


def split_part(key: str) -> tuple[str, Part] | None:
    """The module's name, whatever its layout, and the part; None where the key ends in nothing that is known."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    module = found["module"]
    side = found["script"] or found["linear"] or found["kohya"]
    if side:
        return module, _SIDES[side]
    if found["peft"]:
        return module, _PEFT_SIDES[found["peft"]]
    if found["rotation"]:
        return module, "oft_R.weight"
    return module, found["magnitude"] or found["verbatim"] or "weight"
