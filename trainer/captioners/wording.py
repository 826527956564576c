"""From what a captioner says to the caption that is kept: the user's rules, in one order. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from trainer.captioners.captioner import Description, Tag
from trainer.captioners.guides import guided_text, keeps_tag
from trainer.config.caption import CaptionConfig
from trainer.dataset.captions import caption_from_name, clean_caption, compose_caption, has_trigger_word


@dataclass(frozen=True)
class Wording:
    """The user's rules for one data set."""

    config: CaptionConfig
    trigger_word: str = ""

    def caption(self, description: Description, name: str, before: str = "") -> str:
        """The caption of a picture; empty where nothing is left to say.

        Args:
            description: what the captioner said.
            name: the picture's path below the data set's folder, with `/`.
            before: the captions that it has, one a line; what is new is put behind each.
        """
        words = self._tags(description.tags) if description.tags else self._text(description.text)
        if not words:
            return ""
        filled = self._filled(words, name)
        appends = self.config.existing == "append" and bool(before)
        lines = [self._appended(line, filled) for line in before.split("\n")] if appends else [filled]
        return "\n".join(map(self._triggered, lines))

    def _tags(self, tags: tuple[Tag, ...]) -> str:
        rules = self.config.wording
        replaced = _pairs(rules.replacements)
        kept: dict[str, Tag] = {}
        for tag in sorted(tags, key=lambda tag: -tag.score):
            if not keeps_tag(tag, rules.guide) or _is_listed(tag.text, rules.blacklist):
                continue
            text = replaced.get(tag.text.casefold(), tag.text)
            if text:
                kept.setdefault(text.casefold(), Tag(text, tag.score))
        chosen = list(kept.values())[: self.config.tags.max_tags or None]
        if self.config.tags.order == "alphabet":
            chosen.sort(key=lambda tag: tag.text.casefold())
        return ", ".join(tag.text for tag in chosen)

    def _text(self, text: str) -> str:
        rules = self.config.wording
        text = guided_text(clean_caption(text).text or "", rules.guide)
        for phrase in rules.blacklist:
            text = _whole_words(phrase).sub("", text)
        for old, new in _pairs(rules.replacements).items():
            text = _whole_words(old).sub(lambda _, new=new: new, text)
        return _tidy(text)

    def _filled(self, words: str, name: str) -> str:
        rules, path = self.config.wording, PurePosixPath(name)
        folders = ", ".join(filter(None, (caption_from_name(part) for part in path.parent.parts)))
        values = {
            "name": caption_from_name(path.stem),
            "folder": folders,
            "trigger": self.trigger_word,
            "caption": words,
        }
        # In one pass: what stands in braces inside a caption is no place holder.
        text = re.sub(r"\{(caption|name|folder|trigger)\}", lambda found: values[found[1]], rules.template)
        text = ", ".join(part for part in (rules.prefix, _tidy(text), rules.suffix) if part)
        return clean_caption(text).text or ""

    def _triggered(self, caption: str) -> str:
        if not self.config.wording.insert_trigger:
            return caption
        return compose_caption(caption, self.trigger_word, "", use_captions=True)

    def _appended(self, before: str, new: str) -> str:
        """What there is, and behind it what is new: of tags only those that it has not."""
        has = {part.strip().casefold() for part in before.split(",")}
        if self.trigger_word and has_trigger_word(before, self.trigger_word):
            has.add(self.trigger_word.casefold())
        parts = [part.strip() for part in new.split(",")]
        return ", ".join([before.rstrip(" ,"), *(part for part in dict.fromkeys(parts) if part.casefold() not in has)])


def _pairs(replacements: list[str]) -> dict[str, str]:
    """New words by old ones, in lower case."""
    split = [text.partition("=") for text in replacements]
    return {old.strip().casefold(): new.strip() for old, _, new in split}


def _is_listed(text: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(text.casefold(), pattern.casefold()) for pattern in patterns)


def _whole_words(phrase: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)


def _tidy(text: str) -> str:
    """Without the commas, blanks and joining words that are left where something was taken out."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,.;])", r"\1", text)
    text = re.sub(r"([,;])(?:\s*[,;])+", r"\1", text)
    text = re.sub(r"[,;]\s*\.", ".", text)
    text = re.sub(r"\b(?:and|with)\s*([,.;]|$)", r"\1", text, flags=re.IGNORECASE)
    return text.strip(" ,;").removesuffix(" ,").strip()
