"""Tiny folders of real captioner models: an ONNX tagger that looks at colours, random BLIP and Florence-2 models with real processors."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path

TAGGER_SIDE = 32
TAGS = (
    ("general", 9, (0.0, 0.0, 0.0)),
    ("explicit", 9, (9.0, 9.0, 9.0)),
    ("blue_sky", 0, (1.0, 0.0, 0.0)),
    ("grass_(plant)", 0, (0.0, 1.0, 0.0)),
    ("red_hair", 0, (0.0, 0.0, 1.0)),
    ("^_^", 0, (0.0, 0.0, 0.9)),
    ("robot_zib", 4, (0.0, 0.0, 0.95)),
    ("some_artist", 1, (9.0, 9.0, 9.0)),
)
"""(name, category, weights of the means of blue, green and red, 0 to 1): their sum is the score."""


def make_tagger(folder: Path) -> Path:
    """A model whose scores are weighted means of the channels in the order BGR, and its list of tags."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{index},{name},{category},7\n" for index, (name, category, _) in enumerate(TAGS))
    (folder / "selected_tags.csv").write_text("tag_id,name,category,count\n" + rows)
    weights = [weight / 255 for channel in range(3) for _, _, row in TAGS for weight in (row[channel],)]
    (folder / "model.onnx").write_bytes(_onnx_model(TAGGER_SIDE, len(TAGS), weights))
    return folder


# --- ONNX by hand: fields of onnx.proto, so that no further package is needed ------------------------------------------


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def _field(number: int, value: int | bytes | str) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _value_info(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_field(1, _field(1, d) if isinstance(d, int) else _field(2, d)) for d in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))


def _node(kind: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    names = b"".join(_field(1, name) for name in inputs)
    return names + _field(2, output) + _field(3, output) + _field(4, kind) + attributes


def _onnx_model(side: int, num_tags: int, weights: Sequence[float]) -> bytes:
    axes = _field(5, _field(1, "axes") + _field(8, 1) + _field(8, 2) + _field(20, 7))
    keep = _field(5, _field(1, "keepdims") + _field(3, 0) + _field(20, 2))
    nodes = [
        _node("ReduceMean", ["input"], "means", axes + keep),
        _node("MatMul", ["means", "weights"], "scores"),
    ]
    raw = struct.pack(f"<{len(weights)}f", *weights)
    tensor = _field(1, 3) + _field(1, num_tags) + _field(2, 1) + _field(8, "weights") + _field(9, raw)
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "tiny") + _field(5, tensor)
    graph += _field(11, _value_info("input", ["batch", side, side, 3]))
    graph += _field(12, _value_info("scores", ["batch", num_tags]))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 13))


# --- transformers' own classes, with random weights --------------------------------------------------------------------


def make_blip(folder: Path) -> Path:
    """A BLIP that says words of a vocabulary of twenty."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        *["a", "an", "the", "of", "on", "in", "red", "blue", "cat", "dog", "house", "tree"],
    ]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, bos_token="[DEC]")
    ids = {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3}
    text = {"vocab_size": len(words), "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 16, **ids}
    small = {"num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "image_size": 32, "patch_size": 16, **small}
    torch.manual_seed(0)
    config = BlipConfig(text_config={**text, **small, "max_position_embeddings": 64}, vision_config=vision)
    model = BlipForConditionalGeneration(config)
    # At random it may well say nothing at all.
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[: words.index("a")] -= 100
        model.text_decoder.cls.predictions.decoder.bias[: words.index("a")] -= 100
    model.save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def make_florence2(folder: Path) -> Path:
    """A Florence-2 with one block a stage and a vocabulary of bytes."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import BartTokenizer, Florence2Config, Florence2ForConditionalGeneration, Florence2Processor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {word: index for index, word in enumerate([*special, *letters])}
    tokenizer = BartTokenizer(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    size = len(tokenizer)
    depths = {"depths": [1, 1], "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]}
    widths = {"embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2], "patch_prenorm": [False, True]}
    vision = {**depths, **widths, "window_size": 4, "projection_dim": 16}
    text = {"model_type": "bart", "vocab_size": size, "d_model": 16, "max_position_embeddings": 256}
    text |= {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
             {"layers": 1, "attention_heads": 2, "ffn_dim": 16}.items()}  # fmt: skip
    text |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
    torch.manual_seed(0)
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=tokenizer.image_token_id)
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    sides = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size=sides, crop_size=sides, do_center_crop=False, image_seq_length=17)
    Florence2Processor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def pickled(folder: Path) -> Path:
    """The model as others save it, which must not be loaded: the weights are a pickle."""
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    return folder


def with_own_code(folder: Path) -> Path:
    """The model with the wish that code of its folder be run."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    return folder
