"""Pivotal tuning: a learned word beside any adapter method, or alone (textual inversion, https://arxiv.org/abs/2208.01618).

It wraps a method: layers stay the method's business, the word's vectors are one more group of weights. With `per_layer` it is
P+ (https://arxiv.org/abs/2303.09522): vectors for each cross-attention layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.adapters.method import AdapterMethod, end_early, take_over
from trainer.config.adapter import AdapterConfig
from trainer.config.embedding import GROUP
from trainer.lora_files.file import AdapterModule
from trainer.models.components import Components
from trainer.models.words import LearnedWord, cross_attentions, start_vectors, token_table

_PREFIX = f"{GROUP}."


class PivotalMethod:
    """A method with a word that is learned.

    Args:
        config: the settings; `embedding.num_vectors` is not 0.
        inner: the method, not yet attached; without layers where the settings ask for none.
        name: the word.
    """

    def __init__(self, config: AdapterConfig, inner: AdapterMethod, name: str) -> None:
        self._config = config
        self._settings = config.embedding
        self._inner = inner
        self._name = name
        self._vectors: dict[str, nn.Parameter] = {}
        self._starts: dict[str, Tensor] = {}
        self._usual: dict[str, Tensor] = {}
        """Mean length of a vector in each text encoder's table."""
        self._is_cut = False

    def attach(self, components: Components, seed: int) -> None:
        """Attach the method, and give the word its vectors in the model's vocabulary. Raises ConfigError."""
        self._inner.attach(components, seed)
        text, count = self._settings.init_text or self._name, self._settings.num_vectors
        for part, encoder in components.text_encoders.items():
            table = token_table(encoder).weight.detach()
            ids = components.tokenizers[part](text, add_special_tokens=False).input_ids
            start = start_vectors(ids, table, count).to(components.device)
            if self._settings.per_layer:
                start = start.repeat(len(cross_attentions(components.unet)), 1, 1)
            self._is_cut = self._is_cut or len(ids) > count
            self._vectors[part] = nn.Parameter(start.clone())
            self._starts[part] = start
            self._usual[part] = table.float().norm(dim=1).mean().to(components.device)
        components.words.set("training", [LearnedWord(self._name, self._vectors, is_trained=True)])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The method's groups, and the vectors of all text encoders."""
        return {**self._inner.parameter_groups(), GROUP: list(self._vectors.values())}

    def rate_factor(self, group: str) -> float:
        """The method's; 1 for the vectors, which have a learning rate of their own."""
        return 1.0 if group == GROUP else self._inner.rate_factor(group)

    def state_dict(self) -> dict[str, Tensor]:
        """The method's weights, and the vectors, float32, by `embedding.<text encoder>`."""
        return {**self._inner.state_dict(), **self._own_state()}

    def _own_state(self) -> dict[str, Tensor]:
        return {f"{_PREFIX}{part}": vectors.detach() for part, vectors in self._vectors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the weights of a checkpoint. Raises RunError where they do not fit."""
        own = {name: tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
        self._inner.load_state_dict({name: tensor for name, tensor in state.items() if name not in own})
        take_over(self._own_state(), own)

    def penalty(self) -> Tensor | None:
        """The method's."""
        return self._inner.penalty()

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """Pull the vectors' lengths, and do what the method does after a step of its own; those before it begins are none."""
        if self._settings.norm_pull and self._settings.learns(GROUP, step, total_steps):
            for part, vectors in self._vectors.items():
                length = vectors.norm(dim=-1, keepdim=True)
                vectors.mul_(torch.lerp(length, self._usual[part].expand_as(length), self._settings.norm_pull) / length)
        before = self._settings.first_steps(total_steps)
        if step > before:
            self._inner.after_step(step - before, total_steps - before)

    def at_end(self) -> None:
        """What the method does."""
        end_early(self._inner)

    def export_modules(self) -> dict[str, AdapterModule]:
        """The method's layers. The word is in the model's vocabulary."""
        return self._inner.export_modules()

    def export_parts(self) -> dict[str, dict[str, AdapterModule]]:
        """The method's."""
        return self._inner.export_parts()

    def notes(self) -> list[str]:
        """The method's, and what other programs make of the word."""
        notes = self._inner.notes() if self._config.has_lora else []
        if self._is_cut:
            notes.append(
                f"The words that the vectors start from are more than {self._settings.num_vectors} tokens, and some are passed over."
            )
        if self._settings.per_layer:
            notes.append("Vectors for each layer (P+) are read by Inkwash; other programs get their mean.")
        if self._settings.bundle and self._config.has_lora:
            notes.append(
                "diffusers does not load LoRA files with learned vectors in them: turn adapter.embedding.bundle off for it, "
                "or use `inkwash lora convert`."
            )
        return notes

    def outcome(self) -> str:
        """The method's, and how far the vectors went."""
        pairs = [(self._vectors[part].detach(), start) for part, start in self._starts.items()]
        way = torch.cat([((vectors - start).norm(dim=-1) / start.norm(dim=-1)).flatten() for vectors, start in pairs])
        own = f"The vectors of '{self._name}' moved by {float(way.mean()):.0%} of their length."
        return " ".join(part for part in (self._inner.outcome(), own) if part)
