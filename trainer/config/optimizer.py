"""Optimizers and learning-rate schedules.

All optimizers share the learning rates and the weight decay, so that `--optimizer.name` alone changes the optimizer of a preset.
What only some of them have is a group of its own, which is refused where another optimizer is chosen.

Adding an optimizer: write `trainer/optimizers/<name>.py`, a row in `OPTIMIZERS` and its word in `OptimizerName`; a group for
what it alone has.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.base import BASIC, Settings, foreign_settings
from trainer.config.embedding import GROUP as EMBEDDING

OptimizerName = Literal[
    "adamw",
    "adamw_8bit",
    "paged_adamw",
    "paged_adamw_8bit",
    "schedule_free_adamw",
    "prodigy",
    "dadapt_adam",
    "adafactor",
    "lion",
    "came",
]


class AdafactorSettings(Settings):
    """Adafactor only."""

    beta2_decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """How fast the memory of the gradient's square grows: it forgets step^-0.8 of it in a step."""
    clip_threshold: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """Updates whose root mean square is above this are shortened to it."""


class LionSettings(Settings):
    """Lion only."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the memory against the newest gradient in an update."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Memory of the gradient's mean."""


class CameSettings(Settings):
    """CAME only."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the update's mean."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Memory of the gradient's square."""
    beta3: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """Memory of how far updates are from their mean, by which unsteady ones are shortened."""


class ProdigySettings(Settings):
    """Prodigy only: it finds the learning rate itself."""

    factor: Annotated[float, Field(gt=0, le=100)] = 1.0
    """What the learning rate that it finds is multiplied with. Leave at 1; the schedule comes on top."""
    d_coef: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How bold its estimate is: 0.5 for a gentler, 2 for a stronger training."""
    initial: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """The learning rate that it starts from; a start that is too high cannot be taken back."""
    use_bias_correction: bool = True
    """Adam's correction of the first steps, for a gentler start."""
    safeguard_warmup: bool = True
    """Keeps a warm-up from driving the estimate up."""


class DAdaptSettings(Settings):
    """D-Adaptation only: it finds the learning rate itself."""

    factor: Annotated[float, Field(gt=0, le=100)] = 1.0
    """What the learning rate that it finds is multiplied with. Below 1 where a training is too strong; the schedule comes on top."""
    initial: Annotated[float, Field(gt=0, le=1)] = 1e-6
    """The learning rate that it starts from; a start that is too high cannot be taken back."""
    growth_rate: Annotated[float, Field(gt=1, le=1e6)] = 2.0
    """The most that its estimate is multiplied with in a step. 2 finds the rate within some tens of steps; 1.02 is gentler and wants a long run."""
    use_bias_correction: bool = True
    """Adam's correction of the first steps, for a gentler start."""


class OptimizerConfig(Settings):
    """How the weights are updated."""

    name: OptimizerName = "adamw"
    """The optimizer. `adamw` is the standard; `adamw_8bit` and the `paged` ones save memory (optional part quant); `prodigy` and `dadapt_adam` find the learning rate themselves; `schedule_free_adamw` averages instead of lowering the rate; `adafactor`, `came` and `lion` keep less in memory (lion wants 3 to 10 times lower rates)."""
    unet_learning_rate: Annotated[float, BASIC, Field(ge=0, le=1)] = 1e-4
    """Learning rate of the UNet's LoRA. Too high burns the pictures in, too low changes nothing; 1e-4 is the usual start for SD 1.5. 0 leaves it as it is. Prodigy and D-Adaptation find their own: any rate above 0 then only says that it is trained."""
    text_encoder_learning_rate: Annotated[float, BASIC, Field(ge=0, le=1)] = 2e-5
    """Learning rate of the text encoder's LoRA; a fifth to a tenth of the UNet's is usual. Without effect while the text encoder's rank is 0."""
    embedding_learning_rate: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """Learning rate of the trigger word's own vectors. Without effect while adapter.embedding.num_vectors is 0."""
    text_encoder_2_learning_rate: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Learning rate of the second text encoder's LoRA (SDXL). -1: as the first's."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Pulls the LoRA's weights towards zero a little in each step; learned vectors are left alone."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Memory of the gradient's mean. For the AdamW kinds, Prodigy and D-Adaptation."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Memory of the gradient's square. For the AdamW kinds, Prodigy and D-Adaptation."""
    epsilon: Annotated[float, Field(gt=0, le=0.1)] = 1e-8
    """Added to the denominator against division by zero. For the AdamW kinds, Prodigy and D-Adaptation."""
    prodigy: ProdigySettings = ProdigySettings()
    """Prodigy only."""
    dadapt: DAdaptSettings = DAdaptSettings()
    """D-Adaptation only."""
    adafactor: AdafactorSettings = AdafactorSettings()
    """Adafactor only."""
    lion: LionSettings = LionSettings()
    """Lion only."""
    came: CameSettings = CameSettings()
    """CAME only."""

    @property
    def facts(self) -> OptimizerFacts:
        """What is known of the chosen optimizer."""
        return OPTIMIZERS[self.name]

    @property
    def implementation(self) -> str:
        """Where the optimizer's code is, for `trainer.objects.load_object`."""
        return self.facts.implementation

    def learning_rate(self, part: str) -> float:
        """The full rate of a part of the model or of learned vectors ("embedding"), or the factor of a rate that is found."""
        rates = {"unet": self.unet_learning_rate, EMBEDDING: self.embedding_learning_rate}
        rate = rates.get(part, self.text_encoder_learning_rate)
        if part == "text_encoder_2" and self.text_encoder_2_learning_rate >= 0:
            rate = self.text_encoder_2_learning_rate
        return getattr(self, self.facts.group).factor if self.facts.finds_rate and rate > 0 else rate


@dataclass(frozen=True)
class OptimizerFacts:
    """An optimizer.

    Attributes:
        implementation: "module:name" of what takes an OptimizerConfig and weights by part and gives a torch optimizer.
        title: its usual name.
        state_bytes: what it keeps for each trained number, at most (small weights are not kept in 8 bits).
        group: the settings that only it has; empty if it has none.
        has_betas: whether it uses beta1, beta2 and epsilon.
        finds_rate: whether the learning rates are its own finding; its group then has a `factor` of what it finds.
        averages: whether what it trains is not what is used, but an average of it, in place of a falling rate.
        requires: the module that must be installed, and the optional part that brings it.
    """

    implementation: str
    title: str
    state_bytes: float
    group: str = ""
    has_betas: bool = False
    finds_rate: bool = False
    averages: bool = False
    requires: tuple[str, str] = ("", "")


_QUANT = ("bitsandbytes", "quant")
_8BIT = "trainer.optimizers.adamw_8bit"
OPTIMIZERS: dict[str, OptimizerFacts] = {
    "adamw": OptimizerFacts("trainer.optimizers.adamw:build", "AdamW", 8, has_betas=True),
    "adamw_8bit": OptimizerFacts(f"{_8BIT}:build", "8-bit AdamW", 8, has_betas=True, requires=_QUANT),
    "paged_adamw": OptimizerFacts(f"{_8BIT}:build_paged_32bit", "Paged AdamW", 8, has_betas=True, requires=_QUANT),
    "paged_adamw_8bit": OptimizerFacts(f"{_8BIT}:build_paged", "Paged 8-bit AdamW", 8, has_betas=True, requires=_QUANT),
    "schedule_free_adamw": OptimizerFacts(
        "trainer.optimizers.schedule_free_adamw:build", "Schedule-Free AdamW", 8, has_betas=True, averages=True
    ),
    "prodigy": OptimizerFacts(
        "trainer.optimizers.prodigy:build", "Prodigy", 16, group="prodigy", has_betas=True, finds_rate=True
    ),
    "dadapt_adam": OptimizerFacts(
        "trainer.optimizers.dadapt_adam:build", "D-Adaptation", 12, group="dadapt", has_betas=True, finds_rate=True
    ),
    "adafactor": OptimizerFacts("trainer.optimizers.adafactor:build", "Adafactor", 1, group="adafactor"),
    "lion": OptimizerFacts("trainer.optimizers.lion:build", "Lion", 4, group="lion"),
    "came": OptimizerFacts("trainer.optimizers.came:build", "CAME", 6, group="came"),
}


def optimizer_faults(config: OptimizerConfig, schedule: ScheduleConfig) -> list[tuple[str, str]]:
    """Settings that do not go together, as (field path, message with the remedy)."""
    faults: list[tuple[str, str]] = []
    title = config.facts.title
    if -1 < config.text_encoder_2_learning_rate < 0:
        faults.append(("optimizer.text_encoder_2_learning_rate", "is 0 or more, or -1 for the first text encoder's"))
    if config.facts.averages and schedule.kind != "constant":
        faults.append(("schedule.kind", f"{title} averages instead of lowering the rate: choose constant"))
    if config.facts.averages and config.beta1 == 0:
        faults.append(("optimizer.beta1", f"{title} needs it above 0"))
    defaults = OptimizerConfig.model_fields
    own = () if config.facts.has_betas else ("beta1", "beta2", "epsilon")
    faults += [
        (
            f"optimizer.{name}",
            f"{title} does not have it: {_instead(config, name)}set it back to {defaults[name].default}",
        )
        for name in own
        if getattr(config, name) != defaults[name].default
    ]
    groups = {word: facts.group for word, facts in OPTIMIZERS.items()}
    faults += foreign_settings(config, "optimizer", groups, config.name, title)
    return faults


def _instead(config: OptimizerConfig, name: str) -> str:
    group = getattr(config, config.facts.group, None)
    return f"use optimizer.{config.facts.group}.{name}, and " if hasattr(group, name) else ""


def missing_part(config: OptimizerConfig) -> str:
    """What keeps the optimizer from being used on this installation, with the remedy; empty where nothing does."""
    module, extra = config.facts.requires
    if not module or find_spec(module) is not None:
        return ""
    return (
        f"{config.facts.title} needs {module}, which is not installed: add it with `python launch.py --extra {extra}`, "
        "or choose another optimizer (adafactor also saves memory)"
    )


class ScheduleConfig(Settings):
    """How the learning rates change over the run."""

    kind: Literal["constant", "cosine", "cosine_with_restarts", "linear", "polynomial", "rex"] = "cosine"
    """After warm-up: stay constant, or fall to zero along a cosine, several cosines one after the other, a line, a power of it, or REX (arXiv 2107.04197: slow at first, steep at the end)."""
    warmup_share: Annotated[float, Field(ge=0, le=0.9)] = 0.05
    """Share of the steps in which the rate rises from zero to its full height."""
    num_cycles: Annotated[int, Field(ge=1, le=100)] = 3
    """How many times cosine_with_restarts falls."""
    power: Annotated[float, Field(gt=0, le=10)] = 2.0
    """Exponent of polynomial: 1 is a line, 2 falls fast at first and slowly at the end."""
