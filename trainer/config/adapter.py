"""Adapter methods: what is trained beside the frozen model.

All methods share ranks, targets and dropout, so that `--adapter.method` alone changes the method of a preset. What only some of
them have is a group of its own, which is refused where another method is chosen.

Adding a method: write `trainer/adapters/<method>.py`, a row in `METHODS` and its word in `Method`; a group for what it alone has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from trainer.config.base import BASIC, Settings
from trainer.config.blocks import parse_rates, parse_rule
from trainer.config.cut import WeightedLora, weighted_lora
from trainer.config.embedding import EmbeddingSettings
from trainer.config.joint import JointSettings
from trainer.config.targets import TextTargets, UnetTargets

Method = Literal["lora", "rslora", "loraplus", "dora", "adalora", "loha", "lokr", "oft", "boft", "ia3"]


class UnetLora(Settings):
    """LoRA on the UNet: what pictures look like."""

    rank: Annotated[int, BASIC, Field(ge=0, le=512)] = 16
    """Rank of the UNet's LoRA (the size of the blocks of OFT and BOFT). Higher learns finer detail, makes a larger file and overfits sooner; 4 to 32 is usual. 0: the UNet is not trained."""
    alpha: Annotated[float, BASIC, Field(gt=0, le=1024)] = 16.0
    """The LoRA is scaled by alpha / rank (rsLoRA: alpha / √rank). Equal to the rank, or half of it, is usual; much higher than the rank often ends in NaN. OFT, BOFT and (IA)³ have no scale."""
    targets: UnetTargets = "attention"
    """Which layers learn: `attention` (small file), `attention-qv` (half of it), `attention+mlp`, `all-linear`, `all+conv` (LoCon: also convolutions; strongest for styles); `style-blocks` and `content-blocks` of SDXL (B-LoRA, arXiv 2403.14572); or `pattern`."""
    pattern: Annotated[str, Field(max_length=1000)] = ""
    """Which layers learn with the targets `pattern`: module paths with `*` and a comma between them (`up_blocks.1.*.attn2, mid_block`), or re: and a regular expression."""
    conv_rank: Annotated[int, Field(ge=-1, le=512)] = -1
    """Rank of the convolutions larger than 1 x 1 (kohya's conv_dim), where the targets have any. -1: as the others; 0: none of them."""
    conv_alpha: Annotated[float, Field(ge=0, le=1024)] = 0.0
    """Alpha of those convolutions (kohya's conv_alpha). 0: in proportion to their rank, as the others' is to theirs."""


class TextEncoderLora(Settings):
    """LoRA on the text encoder: what words mean."""

    rank: Annotated[int, BASIC, Field(ge=0, le=512)] = 0
    """Rank of the text encoder's LoRA. 0: it is not trained, which is usual for styles; 4 to 16 for characters."""
    alpha: Annotated[float, BASIC, Field(gt=0, le=1024)] = 8.0
    """The LoRA is scaled by alpha / rank."""
    targets: TextTargets = "attention+mlp"
    """Which layers of the text encoder learn."""


class SecondTextEncoderLora(Settings):
    """LoRA on the second text encoder, which SDXL has."""

    rank: Annotated[int, Field(ge=-1, le=512)] = -1
    """Rank of the second text encoder's LoRA. -1: as the first; 0: it is not trained."""
    alpha: Annotated[float, Field(ge=0, le=1024)] = 0.0
    """The LoRA is scaled by alpha / rank. 0: in proportion to its rank, as the first's."""
    targets: Literal["same", "attention", "attention-qv", "attention+mlp"] = "same"
    """Which of its layers learn; `same` as the first's."""


PartLora = UnetLora | TextEncoderLora


class LoraPlusSettings(Settings):
    """LoRA+ only."""

    ratio: Annotated[float, Field(ge=1, le=256)] = 16.0
    """How many times faster `up` learns than `down` with the method loraplus. The paper's 16 wants a somewhat lower learning rate."""


class EvaSettings(Settings):
    """The start EVA only (arXiv 2410.07170)."""

    batches: Annotated[int, Field(ge=1, le=1000)] = 8
    """How many batches are looked at before the first step."""
    rho: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Up to how many times its rank a layer may get: above 1, ranks move to the layers whose inputs differ in more ways, but to none above 512; how many there are in all stays. 2 is the paper's."""


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
    text_encoder_2: SecondTextEncoderLora = SecondTextEncoderLora()
    """LoRA on the second text encoder."""
    blocks: Annotated[list[str], Field(max_length=1000)] = []
    """Other numbers for single blocks, one a line: `down_blocks.2: rank=4 alpha=2 rate=0.5`, `mid_block: rank=0` (not trained), `text_encoder.encoder.layers.0: rate=0.1`. Names may have * or be kohya's (IN04, MID, OUT05, BASE); later lines win; rate is a factor of the learning rate."""
    block_rates: Annotated[str, Field(max_length=500)] = ""
    """Factors of the learning rate for all blocks, as kohya's lists of block weights: 17 or 26 numbers for SD 1 and 2, 12 or 20 for SDXL, the text encoder's first. 0: the block is not trained."""
    on_top_of: Annotated[list[str], Field(max_length=16)] = []
    """LoRAs that the training starts on top of, one a line: a name in the library or the path of a file, perhaps with a weight (style:0.8, or style:0.8:0.5 for UNet and text encoder). They stay as they are; a new one learns beside them."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the LoRA's inputs dropped at random while training. A little (0.1) against overfitting of tiny sets. For lora, rslora and loraplus."""
    rank_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the ranks left out of a training step at random, others for each picture (kohya's rank_dropout; of loha and lokr rows of the change, as LyCORIS), against overfitting: 0.1 to 0.3. For lora, rslora, loraplus, loha and lokr."""
    module_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the layers whose change is left out of a training step at random, against overfitting."""
    max_norm: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Longest that the change of a layer may get; a longer one is shortened after each step (kohya's scale_weight_norms; 1 is usual). 0: no limit. For lora, rslora and loraplus."""
    init: Literal["random", "orthogonal", "eva", "pissa", "olora"] = "random"
    """Where lora, rslora and loraplus start: at random, in directions at right angles, in those in which your pictures differ most inside the model (EVA), in the strongest of the base (PiSSA), or in those of its QR (OLoRA). PiSSA and OLoRA make files of twice the rank."""
    eva: EvaSettings = EvaSettings()
    """EVA only."""
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
    joint: JointSettings = JointSettings()
    """A second LoRA that learns at the same time."""
    embedding: EmbeddingSettings = EmbeddingSettings()
    """Vectors of its own for the trigger word."""

    @property
    def alone(self) -> tuple[AdapterConfig, ...]:
        """The adapters that are trained, each as if there were no other: this one, or two jointly."""
        second = self.joint
        if not second.is_on:
            return (self,)
        # Their numbers were valid in the settings that they come from.
        own = {
            "method": second.method,
            "unet": UnetLora(rank=second.rank, alpha=second.alpha, targets=second.targets, pattern=second.pattern),
            "text_encoder": TextEncoderLora(rank=second.text_encoder_rank, alpha=second.text_encoder_alpha),
            "text_encoder_2": SecondTextEncoderLora(),
            "blocks": second.blocks,
            "block_rates": "",
        }
        first = self.model_copy(update={"joint": JointSettings()})
        return first, first.model_copy(update=own)

    @property
    def has_lora(self) -> bool:
        """Whether any layer is trained."""
        return self.trains_unet or self.trains_text

    @property
    def trains_unet(self) -> bool:
        """Whether the UNet is trained."""
        return bool(self.unet.rank or self.joint.rank)

    @field_validator("blocks")
    @classmethod
    def _readable_blocks(cls, value: list[str]) -> list[str]:
        for line in value:
            parse_rule(line)
        return value

    @field_validator("on_top_of")
    @classmethod
    def _readable_loras(cls, value: list[str]) -> list[str]:
        for line in value:
            weighted_lora(line)
        return value

    @field_validator("block_rates")
    @classmethod
    def _readable_rates(cls, value: str) -> str:
        parse_rates(value)
        return value

    @property
    def second_text_encoder(self) -> TextEncoderLora:
        """What the second text encoder is trained with, where the model has one."""
        first, own = self.text_encoder, self.text_encoder_2
        rank = first.rank if own.rank < 0 else own.rank
        alpha = own.alpha or (first.alpha * rank / first.rank if rank and first.rank else first.alpha)
        # Proportions of valid numbers; their limits were those of the settings that they come from.
        return TextEncoderLora.model_construct(
            rank=rank, alpha=alpha, targets=first.targets if own.targets == "same" else own.targets
        )

    @property
    def frozen_loras(self) -> list[WeightedLora]:
        """The LoRAs that the training starts on top of."""
        return [weighted_lora(line) for line in self.on_top_of]

    @property
    def has_rates(self) -> bool:
        """Whether blocks that are trained learn at rates of their own."""
        lines = (*self.blocks, *self.joint.blocks)
        rates = {self.joint.rate, *parse_rates(self.block_rates), *(parse_rule(line).rate for line in lines)}
        return bool(rates - {None, 0.0, 1.0})

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder is trained."""
        return bool(self.text_encoder.rank or self.second_text_encoder.rank or self.joint.text_encoder_rank)

    @property
    def implementation(self) -> str:
        """Where the method's code is, for `trainer.objects.load_object`."""
        return PRINCIPAL if self.starts_in_base else METHODS[self.method].implementation

    @property
    def starts_in_base(self) -> bool:
        """Whether it starts from directions of the base model's own weights."""
        return self.init in ("pissa", "olora")

    def scale(self, rank: int, alpha: float) -> float:
        """What a low-rank change is multiplied with; the rank must not be 0."""
        return alpha / (rank**0.5 if self.method == "rslora" else rank)


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
JOINT = "trainer.adapters.joint:JointMethod"
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
