"""What the usual tools read of a LoRA file, as tables and rules; found by running or reading their loaders. No torch.

Versions: A1111 1.10.1, Forge 2025-06, ComfyUI 0.3.64, InvokeAI 2026-08, diffusers 0.42, kohya sd-scripts 2026-02. (IA)³, OFT
and BOFT are by their source alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainer.lora_files.architecture import architecture_from_metadata
from trainer.lora_files.header import read_header
from trainer.lora_files.kinds import ModuleFacts
from trainer.lora_files.layers import Layer, LayerTable, read_layers
from trainer.lora_files.names import FIRST_TEXT_ENCODER_PREFIX, SECOND_TEXT_ENCODER_PREFIX, UNET_PREFIX

_LYCORIS = frozenset({"lora", "tucker", "loha", "lokr", "full", "norm", "bias", "dora by input"})


@dataclass(frozen=True)
class Tool:
    """A program that loads LoRA files.

    Attributes:
        layout: the layout to write for it.
        layouts: the layouts of which it reads something.
        kinds: the kinds (see `kind_label`) that it applies as they are meant.
        max_unknown: with more unknown keys it loads nothing; None is no limit.
        refuses_embeddings: whether a bundled embedding keeps it from loading the file.
    """

    title: str
    layout: str
    layouts: frozenset[str]
    kinds: frozenset[str]
    max_unknown: int | None = None
    refuses_embeddings: bool = False


TARGETS: dict[str, Tool] = {
    "a1111": Tool("A1111", "kohya", frozenset({"kohya"}), _LYCORIS | {"ia3", "oft", "boft"}),
    "forge": Tool("Forge", "kohya", frozenset({"kohya", "diffusers", "comfyui"}), _LYCORIS, max_unknown=12),
    "comfyui": Tool(
        "ComfyUI", "kohya", frozenset({"kohya", "diffusers", "comfyui", "lycoris"}), _LYCORIS | {"oft", "boft"}
    ),
    "invokeai": Tool("InvokeAI", "kohya", frozenset({"kohya"}), _LYCORIS | {"ia3"}, max_unknown=0),
    "diffusers": Tool(
        "diffusers",
        "diffusers",
        frozenset({"kohya", "diffusers"}),
        frozenset({"lora", "dora by output"}),
        max_unknown=0,
        refuses_embeddings=True,
    ),
    "kohya": Tool("kohya sd-scripts", "kohya", frozenset({"kohya"}), frozenset({"lora"})),
}


@dataclass(frozen=True)
class ToolReport:
    """Whether a tool would load a file.

    Attributes:
        loads: "all", "part" or "none".
        reason: why it loads nothing; empty otherwise.
        ignored: for each layer that it would not apply as meant (by the name in the file) the reason.
        notes: what else a user of the tool should know.
    """

    tool: str
    loads: str
    reason: str = ""
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def kind_label(facts: ModuleFacts | None, parts: Mapping[str, object]) -> str:
    """A layer's kind in the words of the tables."""
    if facts is None:
        return "bias"
    if facts.kind == "dora":
        return f"dora by {'input' if facts.dora_axis else 'output'}"
    if facts.kind == "lora" and facts.is_tucker:
        return "tucker"
    return "oft by input" if "oft_R.weight" in parts else facts.kind


def check_file(path: Path) -> list[ToolReport]:
    """What each tool would load of a file, from its header.

    Raises: LoraFileError: it is no LoRA.
    """
    metadata, header = read_header(path)
    table = read_layers(metadata, header, str(path))
    return [check_table(name, table, metadata) for name in TARGETS]


def check_table(name: str, table: LayerTable, metadata: Mapping[str, str]) -> ToolReport:
    """What one tool would load of a file with these layers."""
    tool = TARGETS[name]
    if table.layout not in tool.layouts:
        return ToolReport(name, "none", f"{tool.title} does not read the {table.layout} layout")
    ignored = {
        _module_in_file(layer): reason
        for canonical, layer in table.layers.items()
        if (reason := _problem(name, canonical, layer, table))
    }
    ignored |= {key: "nothing that is known" for key in table.unread}
    reason = _refusal(name, table, ignored)
    if reason:
        return ToolReport(name, "none", reason, ignored)
    loads = "all" if not ignored else "none" if len(ignored) >= len(table.layers) else "part"
    return ToolReport(
        name, loads, "no layer is applied as meant" if loads == "none" else "", ignored, _notes(name, table, metadata)
    )


def _module_in_file(layer: Layer) -> str:
    part, key = next(iter(layer.keys.items()))
    return key.removesuffix(f".{part}")


def _problem(tool: str, canonical: str, layer: Layer, table: LayerTable) -> str:
    label = kind_label(layer.facts, layer.keys)
    if label not in TARGETS[tool].kinds:
        return f"a {label} is not applied as it is meant"
    if table.layout == "diffusers":
        return _problem_of_dotted(tool, layer, label)
    if label == "dora by output":
        return "its magnitudes are dropped"
    in_file = _module_in_file(layer)
    if table.layout == "kohya":
        return _problem_of_name(tool, in_file, canonical, table)
    return ""


def _problem_of_dotted(tool: str, layer: Layer, label: str) -> str:
    key = next(iter(layer.keys.values()))
    is_attention = any(word in key for word in (".to_q", ".to_k", ".to_v", ".to_out"))
    if tool in ("comfyui", "forge") and key.startswith("unet.") and is_attention and ".processor." not in key:
        return "attention layers are not known without `.processor`"
    if label != "lora" and tool != "diffusers":
        return "only plain LoRA is read in this layout"
    return ""


_OUTER = ("conv_in", "conv_out", "time_embedding", "add_embedding", "text_projection")


def _problem_of_name(tool: str, in_file: str, canonical: str, table: LayerTable) -> str:
    is_xl = table.architecture == "sdxl"
    is_sgm = in_file.startswith(UNET_PREFIX) and in_file != canonical
    rest = canonical.split("_", 2)[-1]
    if not is_xl and tool in ("kohya", "invokeai", "diffusers") and is_sgm:
        return "block names of the original code are not known for this model"
    if not is_xl and tool in ("kohya", "invokeai") and in_file.startswith(FIRST_TEXT_ENCODER_PREFIX):
        return "the text encoder's prefix should be `lora_te_`"
    if tool == "kohya" and rest.startswith(_OUTER):
        return "the network has no such layer"
    if tool == "a1111":
        if rest.startswith("text_projection"):
            return "the layer is not known"
        if is_xl and not is_sgm and rest.startswith(("up_blocks_0_upsamplers_0", "add_embedding")):
            return "the layer is known by the original code's name only"
        if (is_xl and canonical.startswith(SECOND_TEXT_ENCODER_PREFIX)) or table.architecture == "sd2":
            return _incomplete_attention(canonical, table)
    if tool == "diffusers" and in_file.startswith(f"{UNET_PREFIX}add_embedding"):
        return "the layer is known by the original code's name only"
    return ""


def _incomplete_attention(canonical: str, table: LayerTable) -> str:
    block, found, _ = canonical.partition("_self_attn_")
    if found and not all(f"{block}_self_attn_{end}_proj" in table.layers for end in ("q", "k", "v", "out")):
        return "an attention of this text encoder is skipped unless q, k, v and out are all there"
    return ""


@dataclass(frozen=True)
class _Refusal:
    """Why a tool loads nothing of a file in a layout that it reads otherwise."""

    tool: str
    layout: str
    reason: str
    applies: Callable[[LayerTable], bool]


def _has(table: LayerTable, *words: str) -> bool:
    """Whether each of the words stands in some key."""
    keys = [key for layer in table.layers.values() for key in layer.keys.values()]
    return all(any(word in key for key in keys) for word in words)


def _mixes_names(table: LayerTable) -> bool:
    unet = [(canonical, layer) for canonical, layer in table.layers.items() if canonical.startswith(UNET_PREFIX)]
    return len({_module_in_file(layer) == canonical for canonical, layer in unet}) > 1


_REFUSALS = (
    _Refusal("invokeai", "kohya", "refuses a mix of both kinds of block names", _mixes_names),
    _Refusal("diffusers", "diffusers", "refuses alphas in this layout", lambda table: _has(table, ".alpha")),
    _Refusal(
        "diffusers", "diffusers", "refuses keys with a peft adapter's name", lambda table: _has(table, ".default.")
    ),
    _Refusal(
        "diffusers",
        "diffusers",
        "loses half of a file that mixes `lora_A` and `lora.down`",
        lambda table: _has(table, ".lora_A.", ".lora.down."),
    ),
)


def _refusal(tool: str, table: LayerTable, ignored: Mapping[str, str]) -> str:
    """Why the tool loads nothing of the file, or nothing."""
    title = TARGETS[tool].title
    if table.embeddings and TARGETS[tool].refuses_embeddings:
        return f"{title} refuses files with a bundled embedding"
    for refusal in _REFUSALS:
        if refusal.tool == tool and refusal.layout == table.layout and refusal.applies(table):
            return f"{title} {refusal.reason}"
    limit, unknown = TARGETS[tool].max_unknown, _unknown_keys(tool, table, ignored)
    if limit is not None and unknown > limit:
        return f"{title} loads nothing of a file with more than {limit} keys that it does not know ({unknown} here)"
    return ""


def _unknown_keys(tool: str, table: LayerTable, ignored: Mapping[str, str]) -> int:
    """How many keys of the file the tool does not know."""
    bundled = sum(len(parts) for parts in table.embeddings.values()) if tool == "forge" else 0
    of_layers = sum(len(layer.keys) for layer in table.layers.values() if _module_in_file(layer) in ignored)
    return bundled + of_layers + len(table.unread)


def _notes(tool: str, table: LayerTable, metadata: Mapping[str, str]) -> tuple[str, ...]:
    notes: list[str] = []
    said = architecture_from_metadata(
        {key: metadata[key] for key in ("ss_base_model_version", "ss_v2") if key in metadata}
    )
    if tool in ("a1111", "forge") and metadata and table.architecture in ("sd2", "sdxl") and said != table.architecture:
        notes.append("the metadata do not name the base model, so that the file is hidden among those for SD 1")
    if table.embeddings and tool in ("comfyui", "forge", "kohya"):
        notes.append("bundled embeddings are not used")
    return tuple(notes)
