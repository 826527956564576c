"""What is asked of the LoRA tools: a settings class each, which names its implementation.

Tab, command line and job are made from TOOLS. Adding a tool: its class and its entry here, and the function it names.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from trainer.config.base import BASIC, Hint, Level, Settings
from trainer.config.cut import Cut, Fault, LossyCut, WeightedLora
from trainer.config.generate import StackedLora

ANY_LORA = Hint(Level.BASIC, names="lora", label="LoRA")
ANY_MODEL = Hint(Level.BASIC, names="model")
BASE_MODEL = Hint(Level.ADVANCED, names="model", label="Base model of DoRA, OFT and (IA)³")
RESULT_NAME = Hint(Level.BASIC, label="Name of the result")


class ToolSettings(Settings):
    """What is asked of a tool. Its first sentence is the tool's summary."""

    implementation: ClassVar[str]
    """`module:function`, called with the settings and a `trainer.tools.result.ToolContext`; returns a ToolResult."""
    title: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]
    """What one types after `inkwash lora`."""
    writes: ClassVar[Literal["nothing", "lora", "model"]] = "nothing"
    """What it makes, and with it in which folder of the data folder it lands."""
    overwrites: ClassVar[bool] = False
    """Whether it can replace a file, where the user says so."""
    draws: ClassVar[bool] = False
    """Whether it gives a picture."""
    flags: ClassVar[dict[str, str]] = {}
    """Flags of the command line that are not called as the field is, by field."""

    def faults(self) -> list[Fault]:
        """Combinations of valid settings that cannot be run."""
        return []

    @model_validator(mode="after")
    def _combinations(self) -> ToolSettings:
        faults = self.faults()
        if faults:
            raise ValueError("\n".join(f"{path}: {message}" for path, message in faults))
        return self


class InspectSettings(ToolSettings):
    """What a LoRA is and what is in it: family, ranks, trigger words, metadata; norms, spectra, dead or damaged layers, what is missing."""

    implementation: ClassVar[str] = "trainer.tools.inspect:run"
    title: ClassVar[str] = "Inspect"
    draws: ClassVar[bool] = True
    examples: ClassVar[tuple[str, ...]] = (
        "inspect my-style.safetensors",
        "inspect ink-wash --picture ink-wash.svg",
        "inspect ink-wash --no-measure --json",
    )

    file: Annotated[str, ANY_LORA, Field(min_length=1)]
    """One of the library by its name, or the path of a `.safetensors` file."""
    measure: Annotated[bool, BASIC] = True
    """Read the weights, too: norms, spectra, dead and damaged layers. Off: the header alone, at once."""
    base: Annotated[str, BASE_MODEL] = ""
    """The changes of these kinds depend on the weights that they are for; without it they are not measured."""


class CompareSettings(ToolSettings):
    """Two LoRAs: whether they pull the same way, and whether they use the same directions, block by block."""

    implementation: ClassVar[str] = "trainer.tools.compare:run"
    title: ClassVar[str] = "Compare"
    examples: ClassVar[tuple[str, ...]] = (
        "compare step1000.safetensors step2000.safetensors",
        "compare ink-wash robot --json",
    )

    first: Annotated[str, replace(ANY_LORA, label="First LoRA"), Field(min_length=1)]
    """One of the library by its name, or the path of a `.safetensors` file."""
    second: Annotated[str, replace(ANY_LORA, label="Second LoRA"), Field(min_length=1)]
    """The one that it is compared with."""
    base: Annotated[str, BASE_MODEL] = ""
    """Needed where a file has layers of these kinds: their changes depend on the weights that they are for."""


class ConflictSettings(ToolSettings):
    """Where the LoRAs of a stack fight, block by block, how much of the change each has, and weights that settle it."""

    implementation: ClassVar[str] = "trainer.tools.conflicts:run"
    title: ClassVar[str] = "Conflicts"
    draws: ClassVar[bool] = True
    examples: ClassVar[tuple[str, ...]] = (
        "conflicts ink-wash:0.8 robot:0.5",
        "conflicts ink-wash robot --picture fights.svg",
        "conflicts ink-wash robot castle --json",
    )

    loras: Annotated[list[StackedLora], Hint(Level.BASIC, names="lora"), Field(min_length=2, max_length=16)]
    """Of the library, each as it is on the stack, with weights of blocks and sampling steps too; two or more."""
    by_block: Annotated[bool, BASIC] = True
    """Suggest that a LoRA is lowered only in the blocks where it fights, where that disturbs the stack less than one number for all."""
    base: Annotated[str, BASE_MODEL] = ""
    """Needed where a file has layers of these kinds: their changes depend on the weights that they are for."""


class CheckSettings(ToolSettings):
    """Would each of the usual programs load this file, and which layers would it ignore."""

    implementation: ClassVar[str] = "trainer.tools.check:run"
    title: ClassVar[str] = "Check"
    examples: ClassVar[tuple[str, ...]] = ("check style.safetensors",)

    file: Annotated[str, ANY_LORA, Field(min_length=1)]
    """One of the library by its name, or the path of a `.safetensors` file."""


class ConvertSettings(ToolSettings):
    """Write a LoRA for another program, in another layout or number format; no change of a weight is lost."""

    implementation: ClassVar[str] = "trainer.tools.convert:run"
    title: ClassVar[str] = "Convert"
    writes: ClassVar[Literal["nothing", "lora", "model"]] = "lora"
    flags: ClassVar[dict[str, str]] = {"target": "for"}
    examples: ClassVar[tuple[str, ...]] = (
        "convert style.safetensors --for comfyui",
        "convert style.safetensors --layout diffusers --dtype fp16 --out style-diffusers.safetensors",
    )

    file: Annotated[str, ANY_LORA, Field(min_length=1)]
    """One of the library by its name, or the path of a `.safetensors` file."""
    target: Annotated[
        Literal["any", "a1111", "forge", "comfyui", "invokeai", "diffusers", "kohya"],
        Hint(Level.BASIC, label="For the program"),
    ] = "any"
    """The program that shall load it: every key is checked against what it knows."""
    layout: Annotated[Literal["auto", "kohya", "diffusers", "peft"], BASIC] = "auto"
    """How the layers are named. `auto` is the program's own, else kohya. `peft` makes a folder."""
    dtype: Annotated[Literal["keep", "fp16", "bf16", "fp32"], Hint(Level.BASIC, label="Number format")] = "keep"
    """`keep` is the one that most of the file has."""
    name: Annotated[str, RESULT_NAME, Field(max_length=100)] = ""
    """In the library. Empty: made of the file's name and what it is for. A name that is taken gets a number."""


class MergeSettings(ToolSettings):
    """Several LoRAs as one: exactly, cut to a rank or file size, or with conflicts settled (TIES, DARE, pruning)."""

    implementation: ClassVar[str] = "trainer.tools.merge:run"
    title: ClassVar[str] = "Merge"
    writes: ClassVar[Literal["nothing", "lora", "model"]] = "lora"
    overwrites: ClassVar[bool] = True
    examples: ClassVar[tuple[str, ...]] = (
        "merge ink-wash:0.8 robot:0.5 --out both.safetensors",
        "merge ink-wash robot:-0.3 --rank 32 --name both",
        "merge a.safetensors b.safetensors --method ties --density 0.4 --size-mb 60 --out both.safetensors",
    )

    loras: Annotated[list[WeightedLora], Hint(Level.BASIC, names="lora"), Field(min_length=1, max_length=64)]
    """Of the library, each with its weights. The result is exactly the sum of weight times change."""
    method: Annotated[Literal["sum", "ties", "dare", "dare_ties", "magnitude"], BASIC] = "sum"
    """`sum` is the plain weighted sum. The others prune first, which needs a rule for the rank: `ties` keeps each LoRA's largest changes and settles signs, `dare` drops changes at random and scales up the rest, `dare_ties` does both, `magnitude` keeps the largest and sums."""
    cut: Cut = Cut()
    """Rank of the result."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each change that pruning keeps."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of DARE's random choice."""
    precision: Annotated[Literal["auto", "fp16", "bf16", "fp32"], Hint(label="Number format of the result")] = "auto"
    """`auto` is the widest of the files."""
    base: Annotated[str, BASE_MODEL] = ""
    """Needed where a file has layers of these kinds: their changes depend on the weights that they are for."""
    name: Annotated[str, RESULT_NAME, Field(max_length=100)] = ""
    """In the library. Empty: made of the names of the files. A name that is taken gets a number."""

    def faults(self) -> list[Fault]:
        """A rule that is out of range, or none where the method needs one."""
        found = self.cut.faults()
        if self.method != "sum" and self.cut.rule == "exact":
            found.append(("cut.rule", f"what {self.method} gives is not of low rank: choose a rule that cuts"))
        return found


class ResizeSettings(ToolSettings):
    """A LoRA at a lower rank, by rank, energy or file size; or any kind as a plain LoRA."""

    implementation: ClassVar[str] = "trainer.tools.resize:run"
    title: ClassVar[str] = "Resize"
    writes: ClassVar[Literal["nothing", "lora", "model"]] = "lora"
    overwrites: ClassVar[bool] = True
    examples: ClassVar[tuple[str, ...]] = (
        "resize big.safetensors --rank 16 --out small.safetensors",
        "resize big.safetensors --sv-fro 0.95 --max-rank 64 --name small",
        "resize loha.safetensors --exact --out plain.safetensors",
    )

    file: Annotated[str, ANY_LORA, Field(min_length=1)]
    """One of the library by its name, or the path of a `.safetensors` file."""
    cut: Cut = Cut(rule="rank", value=16)
    """Rank of the result."""
    drop_differences: bool = False
    """Leave out changes of norms and biases, which not every program reads."""
    precision: Annotated[Literal["auto", "fp16", "bf16", "fp32"], Hint(label="Number format of the result")] = "auto"
    """`auto` is that of the file."""
    base: Annotated[str, BASE_MODEL] = ""
    """Needed where the file has layers of these kinds: their changes depend on the weights that they are for."""
    name: Annotated[str, RESULT_NAME, Field(max_length=100)] = ""
    """In the library. Empty: made of the file's name and the rule. A name that is taken gets a number."""

    def faults(self) -> list[Fault]:
        """A rule that is out of range."""
        return self.cut.faults()


class ExtractSettings(ToolSettings):
    """A LoRA from two checkpoints: what a fine-tuned model changed of its base."""

    implementation: ClassVar[str] = "trainer.tools.extract:run"
    title: ClassVar[str] = "Extract"
    writes: ClassVar[Literal["nothing", "lora", "model"]] = "lora"
    overwrites: ClassVar[bool] = True
    examples: ClassVar[tuple[str, ...]] = (
        "extract base.safetensors tuned.safetensors --rank 32 --out tuned-lora.safetensors",
        "extract ~/models/sd15 tuned.safetensors --sv-fro 0.9 --max-rank 128 --conv-rank 16 --name tuned",
    )

    base_model: Annotated[str, ANY_MODEL, Field(min_length=1)]
    """The base model: one of the list, or the path of a `.safetensors` checkpoint or a diffusers folder."""
    tuned_model: Annotated[str, ANY_MODEL, Field(min_length=1)]
    """The model that was fine-tuned from it."""
    cut: LossyCut = LossyCut()
    """Rank of the result."""
    conv_rank: Annotated[int, Hint(label="Largest rank of 3x3 convolutions"), Field(ge=-1, le=16_384)] = -1
    """-1: the same rule as for the others; 0 leaves them out."""
    text_encoder: bool = True
    """Take the text encoders' changes, too."""
    precision: Annotated[Literal["fp16", "bf16", "fp32"], Hint(label="Number format of the result")] = "fp16"
    """Number format of the file."""
    name: Annotated[str, RESULT_NAME, Field(max_length=100)] = ""
    """In the library. Empty: made of the tuned model's name. A name that is taken gets a number."""

    def faults(self) -> list[Fault]:
        """A rule that is out of range."""
        return self.cut.faults()


class BakeSettings(ToolSettings):
    """LoRAs merged into a base model's files: a checkpoint that needs no LoRA."""

    implementation: ClassVar[str] = "trainer.tools.bake:run"
    title: ClassVar[str] = "Bake"
    writes: ClassVar[Literal["nothing", "lora", "model"]] = "model"
    overwrites: ClassVar[bool] = True
    examples: ClassVar[tuple[str, ...]] = (
        "bake base.safetensors ink-wash:0.8 --out base-ink.safetensors",
        "bake ~/models/sd15 ink-wash:0.8 robot:0.4:0.2 --out ~/models/sd15-both",
    )

    base_model: Annotated[str, ANY_MODEL, Field(min_length=1)]
    """The base model: one of the list, or the path of a `.safetensors` checkpoint or a diffusers folder. It is only read."""
    loras: Annotated[list[WeightedLora], Hint(Level.BASIC, names="lora"), Field(min_length=1, max_length=64)]
    """Of the library, each with its weights."""
    precision: Annotated[Literal["keep", "fp16", "bf16", "fp32"], Hint(label="Number format of the result")] = "keep"
    """`keep` leaves each weight in the format that it has."""
    name: Annotated[str, RESULT_NAME, Field(max_length=100)] = ""
    """In the models folder. Empty: made of the names of the files. A name that is taken gets a number."""


class MetadataSettings(ToolSettings):
    """Show or change what a file says of itself, without touching its weights."""

    implementation: ClassVar[str] = "trainer.tools.metadata:run"
    title: ClassVar[str] = "Metadata"
    writes: ClassVar[Literal["nothing", "lora", "model"]] = "lora"
    flags: ClassVar[dict[str, str]] = {"title_text": "title"}
    examples: ClassVar[tuple[str, ...]] = (
        "metadata style.safetensors",
        "metadata style.safetensors --set modelspec.trigger_phrase=inkstyle",
        "metadata style.safetensors --strip-private --out style-public.safetensors",
    )

    file: Annotated[str, ANY_LORA, Field(min_length=1)]
    """One of the library, or the path of a file. With nothing below filled in, its metadata are shown and nothing is written."""
    trigger_words: Annotated[str, BASIC, Field(max_length=1000)] = ""
    """What one writes in a prompt to call it up, with commas between. Empty: they stay as they are."""
    title_text: Annotated[str, Hint(Level.BASIC, label="Title"), Field(max_length=300)] = ""
    """Its title for people. Empty: it stays."""
    description: Annotated[str, BASIC, Field(max_length=5000)] = ""
    """What it is. Empty: it stays."""
    strip_private: Annotated[bool, BASIC] = False
    """Keep `modelspec.*` and what programs need; captions, data sets, times, paths and training settings go."""
    new_file: Annotated[bool, Hint(Level.BASIC, label="Write a new file")] = False
    """Write a new file to the library. Off: this file's header is changed in place; the app does so with files in its data folder only, and writes a new one for others."""
    set: Annotated[list[str], Hint(label="Set entries"), Field(max_length=200)] = []
    """Other entries, each as KEY=VALUE."""
    remove: Annotated[list[str], Hint(label="Remove entries"), Field(max_length=200)] = []
    """Keys of entries that go."""

    def faults(self) -> list[Fault]:
        """An entry that is not of the form KEY=VALUE."""
        wrong = [text for text in self.set if "=" not in text or text.startswith("=")]
        return [("set", f"'{wrong[0]}' is not of the form KEY=VALUE")] if wrong else []


TOOLS: dict[str, type[ToolSettings]] = {
    "inspect": InspectSettings,
    "check": CheckSettings,
    "convert": ConvertSettings,
    "metadata": MetadataSettings,
    "compare": CompareSettings,
    "conflicts": ConflictSettings,
    "merge": MergeSettings,
    "resize": ResizeSettings,
    "extract": ExtractSettings,
    "bake": BakeSettings,
}
"""The tools by name, in the order of the help and of the tab."""


def summary(settings: type[ToolSettings]) -> str:
    """A tool in one sentence."""
    return (settings.__doc__ or "").strip().split("\n")[0]
