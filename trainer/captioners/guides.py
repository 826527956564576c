"""What the guides leave out: words for what the LoRA shall learn by itself, in tags and in sentences. No torch.

A caption says what shall stay changeable. What is in every picture and in no caption is what the trigger word comes to mean.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from trainer.captioners.captioner import Tag


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

_ADJECTIVES = (
    r"(?:(?:very|long|short|medium[- ]length|shoulder[- ]length|curly|wavy|straight|spiky|messy|thick|big|large|small|"
    r"bright|light|dark|pale|deep|black|white|gr[ae]y|silver|blonde?|golden|brown|auburn|ginger|red|orange|yellow|green|"
    r"blue|teal|purple|violet|pink|brunette|pointed|pointy|fluffy|furry|bushy|fair|tan(?:ned)?|olive|freckled|pierced)"
    r"(?:,\s*|\s+and\s+|\s+))"
)
_TRAITS = r"(?:hair|hairstyle|eyes|skin|beard|mustache|freckles|eyebrows|bangs|ponytail|pigtails|braids?|horns?|tails?|wings|ears|fur|complexion)"
_ONE_TRAIT = rf"(?:(?:a|an|the|her|his|their|its)\s+)?{_ADJECTIVES}*{_TRAITS}\b"
_TRAIT_PHRASE = re.compile(
    rf"(?:,?\s*\b(?:with|has|having|and)\s+|,\s*|\b){_ONE_TRAIT}(?:(?:\s*,\s*|\s*,?\s+and\s+){_ONE_TRAIT})*",
    re.IGNORECASE,
)
_TRAIT_CLAUSE = re.compile(
    rf"\b(?:her|his|their|its|the|whose)\s+{_ADJECTIVES}*{_TRAITS}\s+(?:is|are)\b[^,.;]*", re.IGNORECASE
)
_TRAIT_BEFORE_MORE = re.compile(rf"\b(with|has|having)\s+{_ONE_TRAIT}\s+and\s+(?!{_ONE_TRAIT})", re.IGNORECASE)
_MEDIUM = (
    r"(?:painting|drawing|sketch|illustration|image|picture|photo(?:graph)?|artwork|print|render(?:ing)?|portrait painting|"
    r"cartoon|comic|manga|anime|watercolou?r|engraving|etching|woodcut|still(?: life)?)"
)
_MEDIUM_PHRASES = (
    re.compile(
        rf"\b(?:(?:this|the) (?:image|picture) (?:is|shows)\s+)?(?:an?|the|this)\s+(?:[\w-]+\s+){{0,4}}?{_MEDIUM}\s+"
        r"(?:of|showing|depicting|shows|depicts)\s+",
        re.IGNORECASE,
    ),
    re.compile(r",?\s*\b(?:in|with)\s+(?:an?|the)\s+(?:[\w-]+\s+){0,3}?style(?:\s+of\s+[^,.;]+)?", re.IGNORECASE),
    re.compile(r",?\s*\b(?:done|painted|drawn|rendered|made)\s+(?:in|with|using)\s+[^,.;]+", re.IGNORECASE),
    re.compile(
        r",?\s*\bin\s+(?:black and white|monochrome|watercolou?rs?|oils?|ink|pencil|charcoal|sepia)\b", re.IGNORECASE
    ),
)


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
        text = _TRAIT_CLAUSE.sub("", text)
        # "with a beard and a hat": what follows still hangs on the first word.
        return _TRAIT_PHRASE.sub("", _TRAIT_BEFORE_MORE.sub(r"\1 ", text))
    if guide == "style":
        for pattern in _MEDIUM_PHRASES:
            text = pattern.sub("", text)
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
