"""What a setting is called and explained as, the widget that shows it, and values there and back: FieldSpec -> widget.

All of it comes from the schema; only labels that no rule gives stand here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from trainer.config.fields import FieldSpec

_JS_SAFE_INTEGER = 2**53
"""The browser keeps whole numbers exactly up to here; fields that allow more are texts."""

_WORDS = {"unet": "UNet", "snr": "SNR", "clip": "CLIP"}

LABELS = {
    "model.base": "Base model",
    "data.dataset": "Data set",
    "data.concepts": "Further concepts",
    "data.weight": "Weight of this data set",
    "data.resolutions": "Further resolutions, one a line",
    "data.bucket_no_upscale": "Do not enlarge small pictures",
    "data.prior.dataset": "Class pictures of your own",
    "data.prior.class_prompt": "Class prompt",
    "data.prior.source": "What is kept",
    "data.prior.num_class_images": "Number of class pictures",
    "data.prior.weight": "Weight of class pictures",
    "data.validation_share": "Share held out for validation",
    "adapter.dropout": "LoRA dropout",
    "adapter.rank_dropout": "Rank dropout",
    "adapter.unet.targets": "UNet layers",
    "adapter.unet.pattern": "Pattern of UNet layers",
    "adapter.unet.conv_rank": "Rank of convolutions",
    "adapter.unet.conv_alpha": "Alpha of convolutions",
    "adapter.text_encoder_2.rank": "Second text encoder's rank",
    "adapter.text_encoder_2.alpha": "Second text encoder's alpha",
    "adapter.text_encoder_2.targets": "Second text encoder's layers",
    "adapter.eva.rho": "Most ranks of a layer (rho)",
    "adapter.on_top_of": "On top of these LoRAs",
    "save.export_sum": "Also export the sum",
    "adapter.blocks": "Single blocks",
    "adapter.block_rates": "Block weights of the learning rate",
    "optimizer.text_encoder_2_learning_rate": "Second text encoder's learning rate",
    "adapter.text_encoder.targets": "Text-encoder layers",
    "adapter.text_encoder.rank": "Text-encoder rank",
    "adapter.text_encoder.alpha": "Text-encoder alpha",
    "adapter.embedding.num_vectors": "Vectors of the trigger word",
    "adapter.embedding.init_text": "Words that the vectors start from",
    "adapter.embedding.phase": "When the LoRA learns",
    "adapter.joint.rank": "Rank of the second LoRA",
    "adapter.joint.alpha": "Alpha of the second LoRA",
    "adapter.joint.method": "Method of the second LoRA",
    "adapter.joint.rate": "Learning-rate factor of the second LoRA",
    "adapter.joint.targets": "Targets of the second LoRA",
    "adapter.joint.pattern": "Pattern of the second LoRA",
    "adapter.joint.blocks": "Single blocks of the second LoRA",
    "adapter.joint.text_encoder_rank": "Text-encoder rank of the second LoRA",
    "adapter.joint.text_encoder_alpha": "Text-encoder alpha of the second LoRA",
    "adapter.embedding.first_share": "Share of the steps with vectors alone",
    "adapter.embedding.stop_share": "Share of the steps in which vectors learn",
    "adapter.embedding.per_layer": "Vectors for each layer (P+)",
    "adapter.embedding.norm_pull": "Pull of the vectors' length",
    "adapter.embedding.bundle": "Vectors in the LoRA file, too",
    "optimizer.text_encoder_learning_rate": "Text-encoder learning rate",
    "optimizer.embedding_learning_rate": "Learning rate of the trigger word's vectors",
    "schedule.kind": "Shape",
    "validation.every": "Validate every … steps",
    "preview.prompts": "Sample prompts",
    "preview.every": "Sample every … steps",
    "preview.negative_prompt": "Negative prompt of samples",
    "preview.num_inference_steps": "Denoising steps of samples",
    "preview.guidance_scale": "Guidance of samples",
    "preview.seed": "Seed of samples",
    "save.name": "Name of the LoRA",
    "save.checkpoint_every": "Checkpoint every … steps",
    "save.export_every": "Export every … steps",
    "save.precision": "Number format of the file",
    "model.precision": "Number format of the base model",
    "training.num_devices": "Graphics cards",
    "training.num_threads": "CPU threads",
    "training.ema_decay": "Average of the weights (EMA decay)",
    "optimizer.name": "Optimizer",
    "optimizer.prodigy.d_coef": "Boldness (d_coef)",
    "optimizer.prodigy.initial": "Initial rate",
    "optimizer.dadapt.initial": "Initial rate",
    "optimizer.dadapt.growth_rate": "Most growth in a step",
    "objective.timestep_mean": "Mean of logit_normal",
    "objective.timestep_std": "Width of logit_normal",
    "objective.timestep_mode_scale": "Scale of mode",
    "objective.p2_gamma": "P2 gamma",
    "objective.p2_k": "P2 k",
    "base": "Base model",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "precision": "Number format",
    "init_image": "File of the picture",
    "mask": "File of the mask",
    "strength": "How much is made anew (denoising strength)",
    "resize": "Fit by",
    "masked_area": "The model sees",
    "mask_padding": "Seen around it",
    "mask_blur": "Softness of the mask",
    "hires_scale": "Times larger",
    "hires_upscaler": "Enlarged by",
    "hires_strength": "How much is made anew",
    "hires_steps": "Steps",
    "seamless": "Seamless tile",
    "eta": "Eta",
}
"""Labels that say more than a field's name; the schema's own come first."""

GROUP_TITLES = {
    "RunConfig": "About this run",
    "model": "Base model",
    "data": "Pictures and captions",
    "data.prior": "Prior preservation",
    "adapter": "LoRA",
    "adapter.unet": "LoRA on the UNet",
    "adapter.text_encoder": "LoRA on the text encoder",
    "adapter.text_encoder_2": "LoRA on the second text encoder (SDXL)",
    "adapter.loraplus": "LoRA+",
    "adapter.eva": "EVA",
    "adapter.dora": "DoRA",
    "adapter.lokr": "LoKr",
    "adapter.oft": "OFT and BOFT",
    "adapter.adalora": "AdaLoRA",
    "adapter.joint": "A second LoRA, jointly",
    "adapter.embedding": "Vectors for the trigger word (pivotal tuning)",
    "objective": "Noise and loss",
    "optimizer": "Optimizer",
    "optimizer.prodigy": "Prodigy",
    "optimizer.dadapt": "D-Adaptation",
    "optimizer.adafactor": "Adafactor",
    "optimizer.lion": "Lion",
    "optimizer.came": "CAME",
    "schedule": "Learning-rate schedule",
    "cut": "Rank of the result",
    "wording": "Words",
    "tags": "Tags",
    "tagger": "Tagger",
    "blip": "BLIP",
    "florence2": "Florence-2",
    "server": "Server",
    "training": "Length, memory and device",
    "validation": "Validation loss",
    "preview": "Sample pictures",
    "save": "Checkpoints and export",
}


def label(spec: FieldSpec) -> str:
    """The field's label."""
    if spec.label or spec.path in LABELS:
        return spec.label or LABELS[spec.path]
    words = [_WORDS.get(word, word) for word in spec.name.split("_")]
    text = " ".join(words)
    if spec.group == "adapter.unet":
        text = f"UNet {text}"
    return text[0].upper() + text[1:]


def info(spec: FieldSpec) -> str:
    """The help below the label, with range and unit."""
    parts = [spec.help]
    if spec.kind in ("int", "float") and spec.range_text and spec.maximum != 2**63 - 1:
        allowed = spec.range_text.replace("1e+06", "1,000,000")
        parts.append(f"({allowed}{f' {spec.unit}' if spec.unit else ''})")
    return " ".join(part for part in parts if part)


def element_id(path: str, prefix: str) -> str:
    """The HTML id of a field."""
    return f"{prefix}-{path.replace('.', '-').replace('_', '-')}"


def make_widget(spec: FieldSpec, prefix: str, value: Any = None, **options: Any) -> Component:
    """The widget of a field, showing `value` or the default."""
    shown = to_widget(spec, spec.default if value is None else value)
    common: dict[str, Any] = {
        "label": label(spec),
        "info": info(spec),
        "elem_id": element_id(spec.path, prefix),
        "interactive": True,
        **options,
    }
    if spec.kind == "bool":
        return gr.Checkbox(shown, **common)
    if spec.kind == "choice":
        return gr.Dropdown(list(spec.choices), value=shown, **common)
    if spec.columns:
        return _table(spec, shown, common)
    if spec.kind == "list":
        return gr.Textbox(shown, **{"lines": 4, **common})
    if spec.kind == "str" or _is_text_number(spec):
        return gr.Textbox(shown, **{"lines": 1, **common})
    # No minimum and maximum here: gradio would answer a wrong number with a toast instead of a message at the field.
    return gr.Number(shown, **common)


_WIDTHS = {"int": "100px", "float": "100px", "bool": "130px"}
"""Wide enough for the titles; a narrow page scrolls the table sideways."""
_DATATYPES: dict[str, Any] = {"int": "number", "float": "number", "bool": "bool"}


def _table(spec: FieldSpec, rows: list[list[Any]], common: dict[str, Any]) -> gr.Dataframe:
    """A list of records as a table, a row each; it has no place for the help."""
    options = {name: value for name, value in common.items() if name != "info"}
    return gr.Dataframe(
        rows,
        headers=[column.title for column in spec.columns],
        datatype=[_DATATYPES.get(column.kind, "str") for column in spec.columns],
        column_count=len(spec.columns),
        column_widths=[_WIDTHS.get(column.kind, "150px") for column in spec.columns],
        type="array",
        wrap=True,
        **options,
    )


def _is_text_number(spec: FieldSpec) -> bool:
    return spec.kind == "int" and spec.maximum is not None and spec.maximum > _JS_SAFE_INTEGER


def to_widget(spec: FieldSpec, value: Any) -> Any:
    """A setting as its widget shows it."""
    if spec.columns:
        return [[record.get(column.name, column.default) for column in spec.columns] for record in value]
    if spec.kind == "list":
        return "\n".join(str(item) for item in value)
    return str(value) if _is_text_number(spec) else value


def from_widget(spec: FieldSpec, value: Any) -> Any:
    """What the widget holds as a setting, not yet validated: an empty number field is an empty text, which is refused."""
    if spec.columns:
        return _records(spec, value or [])
    if spec.kind == "list":
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]
    if spec.kind in ("int", "float"):
        if value is None:
            return ""
        if isinstance(value, float) and value.is_integer() and spec.kind == "int":
            return int(value)
        if isinstance(value, str):
            text = value.strip()
            return int(text) if re.fullmatch(r"[+-]?\d{1,30}", text) else text
        return value
    return "" if value is None and spec.kind == "str" else value


def _records(spec: FieldSpec, rows: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The rows of a table as records. Rows without a text in their first cell are no records; empty cells are defaults."""
    records = []
    for row in rows:
        cells = {column.name: from_widget(column, cell) for column, cell in zip(spec.columns, row, strict=False)}
        if str(cells[spec.columns[0].name]).strip():
            records.append({name: cell for name, cell in cells.items() if cell not in ("", None)})
    return records
