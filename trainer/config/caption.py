"""What is asked of the captioners: settings of the job that writes captions into a data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainer.config.base import BASIC, Hint, Level, Settings, foreign_settings

MAX_WORDS = 1000


class WordingSettings(Settings):
    """What is made of the captioner's words, in this order: words are left out or replaced, tags sorted and cut, then the template is filled."""

    guide: Annotated[Literal["none", "style", "character"], Hint(Level.BASIC, label="The LoRA shall learn")] = "none"
    """What is learned must not be described, what shall stay changeable must. `style` leaves out words for medium, technique, palette and quality, and keeps things and places. `character` leaves out hair, eyes, skin, body, species and the names of characters, and keeps pose, expression, clothing and place. `none` leaves out nothing."""
    blacklist: Annotated[list[str], Hint(Level.BASIC, label="Leave out, one a line"), Field(max_length=MAX_WORDS)] = []
    """Tags, in which `*` stands for anything, and in sentences whole words or phrases."""
    replacements: Annotated[
        list[str], Hint(Level.BASIC, label="Replace, one OLD=NEW a line"), Field(max_length=MAX_WORDS)
    ] = []
    """Whole tags, and in sentences whole words or phrases; in upper or lower case. Nothing behind the `=` leaves it out."""
    template: Annotated[str, BASIC, Field(max_length=500)] = "{caption}"
    """`{caption}` is what the captioner says, `{name}` the words of the file's name, `{folder}` those of its folders in a set that is used where it lies, `{trigger}` the trigger word."""
    prefix: Annotated[str, BASIC, Field(max_length=500)] = ""
    """Put in front of every caption, with a comma."""
    suffix: Annotated[str, BASIC, Field(max_length=500)] = ""
    """Put behind every caption, with a comma."""
    insert_trigger: Annotated[bool, Hint(Level.BASIC, label="Write the trigger word in front")] = False
    """Training puts it in front of captions that lack it anyway; on, it also stands in the caption, for other programs."""


class TagSettings(Settings):
    """Of captioners that answer with tags: the built-in one and taggers."""

    order: Annotated[Literal["score", "alphabet"], Hint(Level.BASIC, label="Order of tags")] = "score"
    """`score`: the surest first. `alphabet`: always the same order."""
    max_tags: Annotated[int, Hint(Level.BASIC, label="Most tags of a picture"), Field(ge=0, le=500)] = 0
    """The surest are kept. 0: all."""


class TaggerSettings(Settings):
    """Of WD14-family taggers. Ratings are always left out, underscores become blanks."""

    general_threshold: Annotated[float, BASIC, Field(ge=0, le=1)] = 0.35
    """How sure the tagger must be of a thing. Lower gives more tags, and more that are wrong."""
    character_threshold: Annotated[float, BASIC, Field(ge=0, le=1)] = 0.85
    """How sure it must be of a known character's name. 1 leaves out all but certain ones."""
    escape_brackets: bool = False
    """Write `\\(` for `(`, as prompts of web interfaces want it. Inkwash's training reads captions as they are and needs none."""


class TextModelSettings(Settings):
    """Of models that write sentences."""

    max_new_tokens: Annotated[int, Field(ge=5, le=1024)] = 75
    """The longest answer. Base models read 75 tokens at a time."""
    num_beams: Annotated[int, Field(ge=1, le=16)] = 3
    """How many wordings are followed at once. More is slower, and a little better; 1 takes the likeliest word each time."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """Where the model computes."""
    precision: Annotated[Literal["auto", "fp32", "fp16", "bf16"], Hint(label="Number format")] = "auto"
    """Of the model's weights."""


class BlipSettings(TextModelSettings):
    """Of BLIP models: short sentences."""

    prompt: Annotated[str, Hint(Level.BASIC, label="How sentences begin"), Field(max_length=200)] = ""
    """Words that the model goes on from, such as `a drawing of`; they are part of the caption. Empty: it begins by itself."""


class Florence2Settings(TextModelSettings):
    """Of Florence-2 models."""

    detail: Annotated[Literal["caption", "detailed_caption", "more_detailed_caption"], BASIC] = "detailed_caption"
    """A phrase, some sentences, or a paragraph. A paragraph is often longer than 75 tokens."""


class ServerSettings(Settings):
    """Of a vision-language model behind the usual HTTP interface (`/v1/chat/completions`). Pictures are sent to this address and nowhere else."""

    address: Annotated[str, BASIC, Field(pattern=r"^https?://[^\s?#]+$", max_length=300)] = "http://localhost:11434/v1"
    """Such as Ollama's, llama.cpp's, LM Studio's or vLLM's. A key, where one is needed, is read from the environment variable INKWASH_CAPTION_KEY."""
    prompt: Annotated[str, BASIC, Field(max_length=4000)] = ""
    """What is asked of the model. Empty: a sentence made for what the LoRA shall learn."""
    max_tokens: Annotated[int, Field(ge=5, le=4096)] = 200
    """The longest answer."""
    max_side: Annotated[int, Hint(unit="px"), Field(ge=64, le=4096)] = 1024
    """Larger pictures are made smaller before they are sent."""
    timeout_seconds: Annotated[float, Hint(unit="s"), Field(ge=1, le=3600)] = 120
    """How long to wait for one answer."""
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a picture is tried again when the server is busy or does not answer."""


Captioner = Literal["builtin", "tagger", "blip", "florence2", "server"]
_OWN = {"builtin": "", "tagger": "tagger", "blip": "blip", "florence2": "florence2", "server": "server"}
_TAGS = {"builtin": "tags", "tagger": "tags", "blip": "", "florence2": "", "server": ""}
NEEDS_MODEL = ("tagger", "blip", "florence2")


class CaptionConfig(Settings):
    """Captions for the pictures of a data set. The result is one change of the data set, which can be undone."""

    dataset: Annotated[str, Field(min_length=1, max_length=1000)]
    """Name of a data set, or the path of a folder with pictures."""
    captioner: Annotated[Captioner, BASIC] = "builtin"
    """`builtin`: words of file and folder names, main colours, composition; needs no model. `tagger`: a WD14-family tagger. `blip`, `florence2`: models that write sentences. `server`: a vision-language model behind a local server."""
    model: Annotated[str, BASIC, Field(max_length=1000)] = ""
    """A folder, or the Hugging Face id of a model that was downloaded (owner/name). For a server: the model's name there; empty for the only one that it has."""
    existing: Annotated[
        Literal["only_empty", "overwrite", "append"], Hint(Level.BASIC, label="Pictures that have a caption")
    ] = "only_empty"
    """`only_empty`: they keep it. `overwrite`: they get the new one. `append`: what is new is put behind what they have."""
    preview: Annotated[int, Hint(label="Only try it"), Field(ge=0, le=20)] = 0
    """On how many pictures to try it, without changing the data set. 0: caption all of them."""
    wording: WordingSettings = WordingSettings()
    tags: TagSettings = TagSettings()
    tagger: TaggerSettings = TaggerSettings()
    blip: BlipSettings = BlipSettings()
    florence2: Florence2Settings = Florence2Settings()
    server: ServerSettings = ServerSettings()

    def faults(self) -> list[tuple[str, str]]:
        """Combinations of valid settings that cannot be run, as (path, message)."""
        found: list[tuple[str, str]] = []
        if self.captioner in NEEDS_MODEL and not self.model:
            found.append(("model", "is needed: a folder, or the id of a downloaded model"))
        if self.captioner == "builtin" and self.model:
            found.append(("model", "the built-in captioner has no model: leave it empty, or choose another captioner"))
        for text in self.wording.replacements:
            if not text.partition("=")[0].strip() or "=" not in text:
                found.append(("wording.replacements", f"'{text}' is not of the form OLD=NEW"))
        rest = self.wording.template
        for name in ("caption", "name", "folder", "trigger"):
            rest = rest.replace(f"{{{name}}}", "")
        if "{caption}" not in self.wording.template or "{" in rest or "}" in rest:
            message = "needs {caption}, and may have {name}, {folder} and {trigger}; no other braces"
            found.append(("wording.template", message))
        for groups in (_OWN, _TAGS):
            found += [
                (path.removeprefix("."), message)
                for path, message in foreign_settings(
                    self, "", groups, self.captioner, f"The captioner {self.captioner}"
                )
            ]
        return found

    @model_validator(mode="after")
    def _combinations(self) -> CaptionConfig:
        faults = self.faults()
        if faults:
            raise ValueError("\n".join(f"{path}: {message}" for path, message in faults))
        return self


def groups_of(captioner: str) -> tuple[str, ...]:
    """Names of the groups of settings that a captioner has beside the wording."""
    return tuple(group for group in (_OWN[captioner], _TAGS[captioner]) if group)
