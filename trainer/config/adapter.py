"""Adapter methods: what is trained beside the frozen model.

All methods share ranks, targets and dropout, so that `--adapter.method` alone changes the method of a preset. What only some of
them have is a group of its own, which is refused where another method is chosen.

Adding a method: write `trainer/adapters/<method>.py`, a row in `METHODS` and its word in `Method`; a group for what it alone has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import BASIC, Settings, foreign_settings
from trainer.config.embedding import EmbeddingSettings

Method = Literal["lora", "rslora", "loraplus", "dora", "adalora", "loha", "lokr", "oft", "boft", "ia3"]
UnetTargets = Literal["attention", "attention+mlp", "all-linear", "all+conv"]
TextTargets = Literal["attention", "attention+mlp"]


class UnetLora(Settings):
    """LoRA on the UNet: what pictures look like."""

    rank: Annotated[int, BASIC, Field(ge=0, le=512)] = 16
    """Rank of the UNet's LoRA (the size of the blocks of OFT and BOFT). Higher learns finer detail, makes a larger file and overfits sooner; 4 to 32 is usual. 0: the UNet is not trained."""
    alpha: Annotated[float, BASIC, Field(gt=0, le=1024)] = 16.0
    """The LoRA is scaled by alpha / rank (rsLoRA: alpha / √rank). Equal to the rank, or half of it, is usual; much higher than the rank often ends in NaN. OFT, BOFT and (IA)³ have no scale."""
    targets: UnetTargets = "attention"
    """Which layers learn: `attention` (small file), `attention+mlp`, `all-linear`, or `all+conv` (LoCon: also convolutions; strongest for styles)."""


class TextEncoderLora(Settings):
    """LoRA on the text encoder: what words mean."""

    rank: Annotated[int, BASIC, Field(ge=0, le=512)] = 0
    """Rank of the text encoder's LoRA. 0: it is not trained, which is usual for styles; 4 to 16 for characters."""
    alpha: Annotated[float, BASIC, Field(gt=0, le=1024)] = 8.0
    """The LoRA is scaled by alpha / rank."""
    targets: TextTargets = "attention+mlp"
    """Which layers of the text encoder learn."""


class LoraPlusSettings(Settings):
    """LoRA+ only."""

    ratio: Annotated[float, Field(ge=1, le=256)] = 16.0
    """How many times faster `up` learns than `down` with the method loraplus. The paper's 16 wants a somewhat lower learning rate."""


class DoraSettings(Settings):
    """DoRA only."""

    axis: Literal["input", "output"] = "input"
    """What has a magnitude each: `input` channels is what ComfyUI, A1111 and Forge apply rightly; `output` is the paper's, for diffusers and peft."""


class LokrSettings(Settings):
    """LoKr only."""

    factor: Annotated[int, Field(ge=-1, le=1024)] = 8
    """Size of the smaller Kronecker factor; layers that it does not divide take the nearest below. Higher makes a smaller file. -1: as square as possible, the smallest."""


class OftSettings(Settings):
    """OFT and BOFT only."""

    constraint: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Keeps the rotations small: the most that they may be, for each output channel (1e-5 to 1e-3 is usual). 0: no limit."""


class AdaloraSettings(Settings):
    """AdaLoRA only: ranks move to the layers that need them."""

    target_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of all ranks that are left at the end; the rank is what each layer has at first."""
    start_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps before ranks are taken away."""
    final_share: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the steps at the end in which the ranks stay as they are."""
    every: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Steps between two decisions which ranks stay."""
    orthogonality: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Weight of the loss that keeps the directions of a layer apart from each other."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.85
    """Memory of the importance of a weight."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.85
    """Memory of the uncertainty of that importance."""


class AdapterConfig(Settings):
    """What is trained: a small change beside each chosen layer."""

    method: Annotated[Method, BASIC] = "lora"
    """The adapter method. `lora` is read by every tool, and `rslora`, `loraplus`, `adalora` make the same files; `dora`, `loha`, `lokr` suit styles that it under-fits; `oft`, `boft` rotate, `ia3` is tiny."""
    unet: UnetLora = UnetLora()
    """LoRA on the UNet."""
    text_encoder: TextEncoderLora = TextEncoderLora()
    """LoRA on the text encoder."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the LoRA's inputs dropped at random while training. A little (0.1) against overfitting of tiny sets. For lora, rslora and loraplus."""
    module_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layers whose change is left out of a training step at random, against overfitting. For all methods but lora, rslora and loraplus from a random start."""
    max_norm: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Longest that the change of a layer may get; a longer one is shortened after each step (kohya's scale_weight_norms; 1 is usual). 0: no limit. For lora, rslora and loraplus."""
    init: Literal["random", "orthogonal", "pissa", "olora"] = "random"
    """Where lora, rslora and loraplus start: at random, in directions at right angles, in the strongest of the base (PiSSA), or in those of its QR (OLoRA). PiSSA and OLoRA make files of twice the rank."""
    loraplus: LoraPlusSettings = LoraPlusSettings()
    """LoRA+ only."""
    dora: DoraSettings = DoraSettings()
    """DoRA only."""
    lokr: LokrSettings = LokrSettings()
    """LoKr only."""
    oft: OftSettings = OftSettings()
    """OFT and BOFT only."""
    adalora: AdaloraSettings = AdaloraSettings()
    """AdaLoRA only."""
    embedding: EmbeddingSettings = EmbeddingSettings()
    """Vectors of its own for the trigger word."""

    @property
    def has_lora(self) -> bool:
        """Whether any layer is trained."""
        return bool(self.unet.rank or self.text_encoder.rank)

    @property
    def implementation(self) -> str:
        """Where the method's code is, for `trainer.objects.load_object`."""
        return PRINCIPAL if self.starts_in_base else METHODS[self.method].implementation

    @property
    def starts_in_base(self) -> bool:
        """Whether it starts from directions of the base model's own weights."""
        return self.init in ("pissa", "olora")

    def scale(self, part: UnetLora | TextEncoderLora) -> float:
        """What a part's low-rank change is multiplied with; its rank must not be 0."""
        return part.alpha / (part.rank**0.5 if self.method == "rslora" else part.rank)


@dataclass(frozen=True)
class MethodFacts:
    """A method.

    Attributes:
        implementation: "module:name" of what takes an AdapterConfig and gives an AdapterMethod.
        title: its usual name.
        group: the settings that only it has; empty if it has none.
        algorithm: what kohya and LyCORIS call it ("algo" in `ss_network_args`).
    """

    implementation: str
    title: str
    group: str = ""
    algorithm: str = "lora"


_LORA = "trainer.adapters.lora:LoraMethod"
_OFT = "trainer.adapters.oft:build"
PRINCIPAL = "trainer.adapters.principal:build"
PIVOTAL = "trainer.adapters.pivotal:PivotalMethod"
PLAIN = ("lora", "rslora", "loraplus")
METHODS: dict[str, MethodFacts] = {
    "lora": MethodFacts(_LORA, "LoRA"),
    "rslora": MethodFacts(_LORA, "rsLoRA"),
    "loraplus": MethodFacts(_LORA, "LoRA+", "loraplus"),
    "dora": MethodFacts("trainer.adapters.dora:build", "DoRA", "dora"),
    "adalora": MethodFacts("trainer.adapters.adalora:AdaloraMethod", "AdaLoRA", "adalora"),
    "loha": MethodFacts("trainer.adapters.loha:build", "LoHa", algorithm="loha"),
    "lokr": MethodFacts("trainer.adapters.lokr:build", "LoKr", "lokr", "lokr"),
    "oft": MethodFacts(_OFT, "OFT", "oft", "diag-oft"),
    "boft": MethodFacts(_OFT, "BOFT", "oft", "boft"),
    "ia3": MethodFacts("trainer.adapters.ia3:build", "(IA)³", algorithm="ia3"),
}
_WITHOUT_SCALE = ("oft", "boft", "ia3")


def adapter_faults(config: AdapterConfig) -> list[tuple[str, str]]:
    """Settings that do not go together, as (field path, message with the remedy)."""
    faults = [*_rank_faults(config), *_foreign_groups(config)]
    method = METHODS[config.method].title
    is_random = config.init in ("random", "orthogonal")
    if config.dropout and not (config.method in PLAIN and is_random):
        faults.append(("adapter.dropout", f"{_start(config)} has none: set it to 0, or use adapter.module_dropout"))
    if config.max_norm and not (config.method in PLAIN and is_random):
        faults.append(("adapter.max_norm", f"{_start(config)} has none: set it to 0"))
    if config.module_dropout and config.method in PLAIN and is_random:
        faults.append(("adapter.module_dropout", f"{method} has none: set it to 0, or use adapter.dropout"))
    if config.init != "random" and config.method not in PLAIN:
        faults.append(("adapter.init", f"{method} starts in its own way: choose random, or the method lora"))
    if config.method == "ia3" and config.unet.rank and config.unet.targets not in ("attention", "attention+mlp"):
        faults.append(
            ("adapter.unet.targets", "(IA)³ is read by other tools in linear layers only: attention or attention+mlp")
        )
    if config.method == "adalora" and config.adalora.start_share + config.adalora.final_share >= 1:
        faults.append(("adapter.adalora.final_share", "with adapter.adalora.start_share it must be less than 1"))
    return faults


def _start(config: AdapterConfig) -> str:
    return {"pissa": "PiSSA", "olora": "OLoRA"}.get(config.init, METHODS[config.method].title)


def _rank_faults(config: AdapterConfig) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    parts = {"unet": config.unet, "text_encoder": config.text_encoder}
    if not config.has_lora and not config.embedding.num_vectors:
        faults.append(
            ("adapter.unet.rank", "nothing would be trained: give the UNet or the text encoder a rank above 0")
        )
    for name, part in parts.items():
        if not part.rank or config.method in _WITHOUT_SCALE:
            continue
        if config.scale(part) > 8:
            root = "√rank" if config.method == "rslora" else "rank"
            faults.append(
                (
                    f"adapter.{name}.alpha",
                    f"alpha / {root} is {config.scale(part):.0f}, which ends in NaN: use at most 8 × {root}",
                )
            )
    return faults


def _foreign_groups(config: AdapterConfig) -> list[tuple[str, str]]:
    """Settings of methods that are not chosen: they would do nothing."""
    groups = {word: facts.group for word, facts in METHODS.items()}
    return foreign_settings(config, "adapter", groups, config.method, f"the method {config.method}")
