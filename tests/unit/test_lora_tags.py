"""LoRAs named in a prompt, and block weights as people write them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from trainer import lora_lookup
from trainer.block_names import block_of, blocks_per_side
from trainer.blocks import parse_blocks
from trainer.config.generate import StackedLora
from trainer.errors import ConfigError, LoraFileError
from trainer.lora_lookup import find_lora, resolve_tags
from trainer.lora_tags import TagValues, read_tags, write_tag
from trainer.paths import DataFolder
from trainer.stacks import load_stack, save_stack

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
SEVENTEEN = "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0"


def put(data: DataFolder, name: str, number: float, **metadata: str) -> Path:
    path = data.loras / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    down, up = np.full((1, 8), number, np.float16), np.ones((8, 1), np.float16)
    save_file({f"{LAYER}.lora_down.weight": down, f"{LAYER}.lora_up.weight": up}, path, metadata or None)
    return path


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = DataFolder(tmp_path)
    put(folder, "ink", 1, ss_output_name="inkwash-v2")
    put(folder, "styles/Oil", 2)
    return folder


VALID: list[tuple[str, str, dict[str, Any]]] = [
    ("a house <lora:ink>", "a house", {}),
    ("<lora:ink:0.8>", "", {"unet": 0.8, "te": 0.8}),
    ("a <lora:ink:0.8> b", "a b", {"unet": 0.8, "te": 0.8}),
    ("a,<lora:ink:0.8>, b", "a,, b", {"unet": 0.8, "te": 0.8}),
    ("<lora:ink:0.8:0.5>x", "x", {"unet": 0.8, "te": 0.5}),
    ("<lora:ink:-1.5>", "", {"unet": -1.5, "te": -1.5}),
    ("<lora:ink:1e-05:-2.5E-1>", "", {"unet": 0.00001, "te": -0.25}),
    ("<lora:ink:.5:+1>", "", {"unet": 0.5, "te": 1.0}),
    ("<LoRA: ink : 0.5 >", "", {"unet": 0.5, "te": 0.5}),
    ('<lora:"ink":1>', "", {}),
    ("<lyco:ink:0.5>", "", {"unet": 0.5, "te": 0.5}),
    ("<lora:ink:te=0.5:unet=0.8>", "", {"unet": 0.8, "te": 0.5}),
    ("<lora:ink:unet=0.8>", "", {"unet": 0.8, "te": 0.8}),
    ("<lora:ink:0.8:te=0>", "", {"unet": 0.8, "te": 0.0}),
    ("<lora:ink:0.8:blocks=MIDD>", "", {"unet": 0.8, "te": 0.8, "blocks": "MIDD"}),
    ("<lora:ink:1:lbw=OUTS>", "", {"blocks": "OUTS"}),
    ("<lora:ink:1:MIDD>", "", {"blocks": "MIDD"}),
    (f"<lora:ink:1:1:lbw={SEVENTEEN}>", "", {"blocks": SEVENTEEN}),
    (f"<lora:ink:1:{SEVENTEEN}>", "", {"blocks": SEVENTEEN}),
    ("<lora:ink:1:blocks=down1:0.5,mid:0>", "", {"blocks": "down1:0.5,mid:0"}),
    (
        "<lora:ink:1:blocks=down1:0.5,mid:0:steps=0.2-0.8>",
        "",
        {"blocks": "down1:0.5,mid:0", "start": 0.2, "end": 0.8},
    ),
    ("<lora:ink:1:steps=0-0.5>", "", {"end": 0.5}),
    ("<lora:ink:1:steps=0-1>", "", {}),
    ("<lora:ink:1:step=5-15>", "", {"start": 0.25, "end": 0.75}),
    ("<lora:ink:1:steps=0-5>", "", {"end": 0.25}),
    ("<lora:ink:1:steps=1-5>", "", {"start": 0.05, "end": 0.25}),
    ("<lora:ink:1:stop=10>", "", {"end": 0.5}),
    ("<lora:ink:1:start=1:end=0.5>", "", {"start": 0.05, "end": 0.5}),
    ("<lora:ink:1:start=0.5>", "", {"start": 0.5}),
    ("<lora:ink:1:stop=99>", "", {}),
    ("<lora:ink:1:on=0>", "", {"on": False}),
    ("<lora:inkwash-v2:1>", "", {}),
    ("<lora:INK:1>", "", {}),
    ("<lora:ink.safetensors:1>", "", {}),
    ("<lora:oil:1>", "", {"file": "styles/Oil"}),
    ("<lora:styles/Oil:1>", "", {"file": "styles/Oil"}),
    ("a < b, c > d <b>", "a < b, c > d <b>", {"none": True}),
    ("(<lora:ink:0.5>word:1.2)", "(word:1.2)", {"unet": 0.5, "te": 0.5}),
]


@pytest.mark.parametrize(("prompt", "words", "values"), VALID, ids=[case[0] for case in VALID])
def test_tags_that_can_be_read(data: DataFolder, prompt: str, words: str, values: dict[str, Any]) -> None:
    rest, loras = resolve_tags(data, prompt, num_steps=20)
    assert rest == words
    wanted = {
        "file": values.get("file", "ink"),
        "unet_weight": values.get("unet", 1.0),
        "text_encoder_weight": values.get("te", 1.0),
        "blocks": values.get("blocks", ""),
        "start": pytest.approx(values.get("start", 0.0)),
        "end": pytest.approx(values.get("end", 1.0)),
        "is_on": values.get("on", True),
    }
    assert loras == ([] if "none" in values else [wanted])


MALFORMED = [
    ("a <lora:ink", "at character 3: the tag is not closed"),
    ("<lora:ink <lora:ink:1>", "at character 1: the tag is not closed"),
    ("<lora:>", "names no LoRA"),
    ("<lora::0.8>", "names no LoRA"),
    ("<lora:ink:>", "a weight is missing"),
    ("<lora:ink:much>", "'much' is neither a weight nor block weights"),
    ("<lora:ink:0.8:0.5:0.3>", "three weights"),
    ("<lora:ink:11>", "allowed: -10 to 10"),
    ("<lora:ink:1e9>", "allowed: -10 to 10"),
    ("<lora:ink:nan>", "neither a weight"),
    ("<lora:ink:te=x>", "te is 'x', which is no number"),
    ("<lora:ink:1:block=MIDD>", "did you mean 'blocks'"),
    ("<lora:ink:1:dyn=4>", "is nothing that a tag can have"),
    ("<lora:ink:1:blocks=MIDDD>", "did you mean MIDD"),
    ("<lora:ink:1:blocks=1,2,3>", "this one has 3"),
    ("<lora:ink:1:blocks=down1:x>", "which is no number"),
    ("<lora:ink:1:blocks=dwon1:1>", "did you mean DOWN1"),
    ("<lora:ink:1:lbw=MIDD:blocks=ALL>", "stands there twice"),
    ("<lora:ink:1:steps=5>", "is not FROM-TO"),
    ("<lora:ink:1:steps=0.8-0.2>", "end at 0.2, before they start at 0.8"),
    ("<lora:ink:1:stop=0>", "end at 0, before"),
    ("<lora:ink:1:start=1.5>", "at most 1"),
    ("<lora:ink:1:start=25>", "with 20 sampling steps it would work in none"),
    ("<lora:ink:1:on=yes>", "on=0 or on=1"),
    ("x <lora:inkk:1>", "at character 3: There is no LoRA 'inkk' in the library. Did you mean ink?"),
    ("<lora:zzzzzz:1>", "The library has:"),
]


@pytest.mark.parametrize(("prompt", "words"), MALFORMED, ids=[case[0] for case in MALFORMED])
def test_tags_that_cannot_be_used_are_told_with_their_place(data: DataFolder, prompt: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_tags(data, prompt, num_steps=20)
    (finding,) = caught.value.findings
    assert finding.where == "prompt"
    assert words in finding.message


def test_all_faults_are_told_at_once_in_order(data: DataFolder) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_tags(data, "<lora:gone:1> and <lora:ink:x> and <lora:ink:1>", num_steps=20)
    assert [finding.message.split(":")[0] for finding in caught.value.findings] == ["at character 1", "at character 19"]


def test_hashes_name_a_lora_and_double_names_are_refused(data: DataFolder) -> None:
    file = data.loras / "ink.safetensors"
    content = file.read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    for digest in (hashlib.sha256(content).hexdigest(), hashlib.sha256(tensors).hexdigest()):
        for text in (digest, digest[:10], digest[:12].upper(), f"0x{digest}"):
            assert find_lora(data, text).name == "ink"
    with pytest.raises(LoraFileError):
        find_lora(data, "0" * 12)
    put(data, "more/Oil", 3)
    with pytest.raises(LoraFileError, match="any of 2") as caught:
        find_lora(data, "oil")
    assert "styles/Oil" in caught.value.fix
    assert find_lora(data, "more/Oil").name == "more/Oil"


def test_files_that_cannot_be_read_do_not_hide_the_others(data: DataFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    (data.loras / "page.safetensors").write_text("<!DOCTYPE html><html>not found</html>")
    torn = put(data, "torn", 5)
    saved = save_stack(data, "mine", [StackedLora(file="ink"), StackedLora(file="page"), StackedLora(file="torn")])
    read = lora_lookup.hashes_of

    def hashes_of(path: Path) -> tuple[str, str]:
        if path == torn:
            raise PermissionError(13, "no")
        return read(path)

    monkeypatch.setattr(lora_lookup, "hashes_of", hashes_of)
    digest = hashlib.sha256((data.loras / "ink.safetensors").read_bytes()).hexdigest()
    assert find_lora(data, digest).name == "ink"
    with pytest.raises(LoraFileError, match="no LoRA"):
        find_lora(data, "20231105")
    (data.loras / "ink.safetensors").unlink()
    assert load_stack(data, "mine").missing == ("ink",)
    assert save_stack(data, "mine", [StackedLora(file="torn")], overwrite=True) == saved


@pytest.mark.parametrize(
    "values",
    [
        TagValues("ink"),
        TagValues("ink", -0.35, -0.35),
        TagValues("ink", 0.8, 0.5, "down1:0.5,mid:0", 0.2, 0.8, is_on=False),
        TagValues("styles/Oil", 1, 0, SEVENTEEN, 1 / 3, 1.0),
        TagValues("ink", 0.00001, -0.0000125, "", 0.00002, 1.0),
    ],
)
def test_what_is_written_is_read_again(values: TagValues) -> None:
    (tag,) = read_tags(write_tag(values)).tags
    assert (tag.name, tag.unet_weight, tag.text_encoder_weight) == (
        values.name,
        values.unet_weight,
        values.text_encoder_weight,
    )
    assert (tag.blocks, tag.is_on) == (values.blocks, values.is_on)
    assert tag.span(20) == pytest.approx((values.start, values.end), abs=1e-5)


# --- blocks -----------------------------------------------------------------------------------------------------------

# As lora-block-weight numbers them: the layer of the original UNet that it is.
PLACES = {
    "unet.conv_in": "IN00",
    "unet.down_blocks.0.attentions.0.proj_in": "IN01",
    "unet.down_blocks.0.resnets.1.conv1": "IN02",
    "unet.down_blocks.0.downsamplers.0.conv": "IN03",
    "unet.down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": "IN05",
    "unet.down_blocks.3.resnets.1.conv2": "IN11",
    "unet.mid_block.resnets.1.norm1": "MID",
    "unet.up_blocks.0.upsamplers.0.conv": "OUT02",
    "unet.up_blocks.1.attentions.0.proj_out": "OUT03",
    "unet.up_blocks.3.attentions.2.transformer_blocks.0.ff.net.2": "OUT11",
    "unet.up_blocks.3.resnets.2.conv1.bias": "OUT11",
    "unet.time_embedding.linear_1": "BASE",
    "text_encoder.encoder.layers.3.mlp.fc1": "BASE",
}


def test_layers_are_in_the_blocks_that_other_programs_put_them_in() -> None:
    assert {path: block_of(path) for path in PLACES} == PLACES
    assert blocks_per_side(PLACES) == 12
    assert blocks_per_side(["unet.up_blocks.2.resnets.0.conv1"]) == 9


def on(text: str, per_side: int = 12) -> set[str]:
    return {block for block, weight in parse_blocks(text).table(per_side).items() if weight}


def side(name: str, *numbers: int) -> set[str]:
    return {f"{name}{number:02d}" for number in numbers}


def test_presets_are_those_of_the_lists_on_every_layer() -> None:
    # The lists of lora-block-weight's own presets for attention layers.
    lists = {
        "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
        "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
        "MIDD": SEVENTEEN,
        "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
        "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
        "ALL": ",".join("1" * 17),
        "NONE": ",".join("0" * 17),
    }
    for preset, numbers in lists.items():
        assert on(preset) == on(numbers), preset
    assert on("INALL") == {"BASE", *side("IN", *range(12))}
    assert on("OUTALL", 9) == {"BASE", *side("OUT", *range(9))}
    assert on("MID") == {"MID"}
    assert on("NOUT05") == on("ALL") - {"OUT05"}
    assert set(parse_blocks("ALL0.5").table(12).values()) == {0.5}
    assert on("IND", 9) == {"BASE", *side("IN", 6, 7, 8)}


def test_lists_name_the_blocks_in_order() -> None:
    for count, per_side in ((26, 12), (20, 9)):
        table = parse_blocks(",".join(str(index / 10) for index in range(count))).table(per_side)
        assert list(table.values()) == pytest.approx([index / 10 for index in range(count)])
    table = parse_blocks(",".join(str(index) for index in range(10)) + ",0.5,0.6").table(9)
    assert (table["BASE"], table["IN04"], table["IN08"], table["MID"]) == (0, 1, 4, 5)
    assert (table["OUT00"], table["OUT03"], table["OUT05"], table["OUT08"]) == (6, 9, 0.6, 0.6)


def test_blocks_by_name() -> None:
    table = parse_blocks("rest:0, down1:0.5, mid:-1, IN04-IN05:2, up3:1, base:0.25").table(12)
    assert {block: weight for block, weight in table.items() if weight} == {
        "BASE": 0.25, "IN04": 2.0, "IN05": 2.0, "IN06": 0.5, "MID": -1.0, "OUT09": 1.0, "OUT10": 1.0, "OUT11": 1.0,
    }  # fmt: skip
    assert parse_blocks("").table(12) == dict.fromkeys(parse_blocks("ALL").table(12), 1.0)


@pytest.mark.parametrize(
    ("text", "per_side", "words"),
    [(SEVENTEEN, 9, "write 12 or 20 numbers"), (SEVENTEEN, 6, "by name"), ("up3:1", 9, "no block OUT09"), ("IN12:1", 12, "no block IN12")],
)  # fmt: skip
def test_block_weights_for_another_model_are_refused(text: str, per_side: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_blocks(text).table(per_side)
