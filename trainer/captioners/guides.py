"""What the guides leave out: words for what the LoRA shall learn by itself, in tags and in sentences. No torch.

A caption says what shall stay changeable. What is in every picture and in no caption is what the trigger word comes to mean.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from trainer.captioners.captioner import Tag
from trainer.captioners.medium_phrases import without_medium
from trainer.captioners.trait_phrases import without_traits


def _ending(*words: str) -> tuple[str, ...]:
    """Patterns for tags whose last word is one of these: `hair` and `long hair`, not `chair`."""
    return tuple(pattern for word in words for pattern in (word, f"* {word}"))


STYLE_TAGS = (
    *_ending("style", "artstyle", "colours", "colors", "palette", "lineart", "line art", "outlines", "shading"),
    *_ending("drawing", "illustration", "rendering", "render", "art", "quality", "username", "media"),
    *("style of *", "*(medium)", "*(style)", "monochrome", "greyscale", "grayscale", "sepia", "spot color", "colorful"),
    *("high contrast", "low contrast", "sketch", "*hatching", "halftone*", "screentone*", "stippling", "outline"),
    *("painting", "oil painting", "ink painting", "digital painting", "watercolor*", "watercolour*", "gouache", "ink"),
    *("oil paint*", "acrylic paint*", "ink wash*", "pencil", "colored pencil*", "charcoal", "crayon", "marker"),
    *("brushstroke*", "brush stroke*", "impasto", "flat color*", "3d", "vector*", "realistic", "photorealistic"),
    *("photo", "photograph", "photography", "anime*", "manga", "comic", "cartoon*", "ukiyo-e", "impressionism"),
    *("surreal*", "abstract*", "chibi", "film grain", "chromatic aberration"),
    *("absurdres", "highres", "lowres", "masterpiece", "artist name", "signature", "watermark"),
)
"""Tags that `style` leaves out: medium, technique, palette, quality, and what artists write on pictures."""

CHARACTER_TAGS = (
    *_ending(
        "hair", "hair bun", "hair buns", "bangs", "ponytail", "twintails", "braid", "braids", "sidelocks", "hairstyle"
    ),
    *_ending("eyes", "pupils", "eyelashes", "eyebrows", "sclera", "skin", "freckles", "mole", "scar", "tattoo"),
    *_ending(
        "beard", "mustache", "ears", "horn", "horns", "tail", "tails", "wings", "fang", "fangs", "breasts", "build"
    ),
    *(
        "ahoge",
        "hair between eyes",
        "heterochromia",
        "tan",
        "tanlines",
        "mole under *",
        "scar on *",
        "birthmark",
        "halo",
    ),
    *("muscular*", "elf", "furry*", "animal ear fluff", "petite", "plump", "facial mark*", "facial hair"),
)
"""Tags that `character` leaves out: what a character always is."""

CHANGEABLE = (
    *(
        "closed eyes",
        "half-closed eyes",
        "one eye closed",
        "narrowed eyes",
        "crossed eyes",
        "rolling eyes",
        "wide-eyed",
    ),
    *(
        "covering *eyes",
        "covered eyes",
        "hand in *hair",
        "*playing with *hair",
        "adjusting hair",
        "wet hair",
        "floating hair",
    ),
    *(
        "messy hair",
        "*grabbing *",
        "* hold *",
        "holding *",
        "empty eyes",
        "crying*",
        "hand on *",
        "hands on *",
        "ponytail holder",
    ),
)
"""Tags that look like those above and say a pose or an expression: they stay."""


def keeps_tag(tag: Tag, guide: str) -> bool:
    """Whether a guide lets a tag stand."""
    text = tag.text.casefold()
    if guide == "style":
        return not _matches(text, STYLE_TAGS)
    if guide == "character":
        return not tag.is_name and (_matches(text, CHANGEABLE) or not _matches(text, CHARACTER_TAGS))
    return True


def guided_text(text: str, guide: str) -> str:
    """A sentence without the phrases that a guide leaves out. Others stay as they are, also where they say the same in other words."""
    if guide == "character":
        return without_traits(text)
    if guide == "style":
        return without_medium(text)
    return text


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


PROMPTS = {
    "none": "Describe this picture in one or two plain sentences: who or what is there, what it does, where it is.",
    "style": (
        "Describe what is shown in this picture in one or two plain sentences: subjects, what they do, things, place, light. "
        "Do not mention that it is a painting, drawing or photo, nor its medium, technique, art style, palette or quality."
    ),
    "character": (
        "Describe this picture in one or two plain sentences: the character's pose, expression, clothing, what it holds, and the place. "
        "Do not mention hair, eyes, skin, body, age or species, and no name."
    ),
}
"""What a vision-language model is asked, by guide, where the user asks nothing of his own."""
