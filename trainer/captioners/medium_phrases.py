"""Sentences without what they say of medium and technique: "a painting of", "in the style of", "drawn with ink". No torch.

A phrase goes only where nothing else can be meant: a painting at the beginning of a sentence is the picture, one further on hangs in a room;
a portrait is drawn with ink, a lunch is made with eggs.
"""

from __future__ import annotations

import re

from trainer.captioners.sentence_words import FINITE, SUBJECTS, any_of, cased_as, last_word, looks_like_verb

_FLAGS = re.IGNORECASE
_START = r"(?:^|(?<=[.!?]\s))"
_PAINTED = any_of(
    "painting drawing sketch illustration artwork print poster rendering render cartoon comic manga anime "
    "watercolou?r engraving etching woodcut still(?:\\s+life)?"
)
_MEDIUM = rf"(?:{_PAINTED}|(?:image|picture|photo(?:graph)?)s?)"
_LOOK = any_of(
    "vibrant colou?rful detailed dark bright moody stylized realistic minimalist whimsical abstract surreal soft simple "
    "beautiful high-quality black-and-white"
)
_WORD = (
    r"(?:black\s+and\s+white\s+|pen\s+and\s+ink\s+|oil\s+painting\s+"
    rf"|{_LOOK},\s+|(?!(?:an?|the|with|of|in|on|at|by|and|{SUBJECTS}|{FINITE}|\w+ing)\s)[\w-]+\s+)"
)
_NAMED = rf"(?:an?|the|this)\s+{_WORD}{{0,4}}?{_MEDIUM}"
_SHOWS = r"(?:of|(?:that\s+)?(?:showing|depicting|featuring|shows|depicts|features|portrays))"
_THIS = r"(?:(?:this|the)\s+(?:image|picture|photo(?:graph)?)|this|it)"
_OPENING = re.compile(
    rf"{_START}(?:in\s+(?:this|the)\s+{_MEDIUM}(?:,\s+|\s+(?=(?:an?|the|we|you|there)\s))(?:(?:we|you)\s+(?:can\s+)?see\s+)?"
    rf"|(?:{_THIS}\s+(?:is|shows|depicts|features)\s+)?{_NAMED}\s+{_SHOWS}\s+)(?P<next>\w+)",
    _FLAGS,
)
_HANGS = re.compile(r"\bhang(?:s|ing)\s+(?:on|in)\b", _FLAGS)
_IN_A_ROOM = re.compile(
    r"\b(?:on\s+(?:an?|the|her|his)\s+(?:[\w-]+\s+)?(?:wall|easel)|framed?|museum|gallery)\b", _FLAGS
)

_AFTER = (
    r"(?=\s*(?:[,.;:!?)]|$)|\s+(?:with|on|in|at|by|near|next|while|who|is|are|standing|sitting|holding|wearing|looking|"
    r"walking|and\s+(?:an?|the))\b)"
)
_ART = any_of(
    "anime manga cartoon cartoonish comic art artistic artwork watercolou?r oil ink sketch painterly painting impressionist "
    "impressionistic expressionist cubist realistic photorealistic hyperrealistic abstract surreal surrealist pixel chibi flat "
    "vector minimalist illustration illustrative hand-drawn drawing digital 3d ukiyo-e graphic pop line line-art comic-book"
)
_MAKER = (
    rf"(?:(?:an?|the)\s+(?=(?:[\w-]+\s+)?{_ART}\b))?(?:(?!(?:with|on|in|at|by|near|next|while|who|an?|the|\d+|is|are|\w+ing)\b)"
    r"[\w.'-]*[\w'-]\s+){0,5}?(?!\d)[\w.'-]*[\w'-]"
)
_DRAWN = r"(?:(?:painted|drawn|done|rendered|illustrated|created)\s+)?"
_STYLE = re.compile(
    rf"(?:,\s*|\s+){_DRAWN}(?:in|with)\s+(?:(?:an?|the)\s+style\s+of\s+{_MAKER}"
    rf"|(?:an?|the)\s+(?:(?!(?:an?|the|with|of|\w+ing)\s)[\w-]+\s+){{0,2}}?{_ART}(?:\s+{_ART})?[\s-]style){_AFTER}",
    _FLAGS,
)
_PAINT = any_of(
    "watercolou?rs? inks? acrylics? gouache pencils? charcoal crayons? markers? pastels? chalk pens? brush brushes brushstrokes paints? "
    "(?<!made\\swith\\s)oils oil\\s+paints? oil\\s+pastels? black\\s+and\\s+white monochrome sepia"
)
_PAINTS = (
    rf"(?:an?\s+)?(?:(?:black|colou?red|soft|bold|thick|loose|fine|digital|spray|acrylic|ballpoint)\s+){{0,2}}{_PAINT}"
)
_WITH_PAINT = re.compile(
    rf"(?:,\s*|\s+)(?:done|painted|drawn|rendered|made|created|illustrated|sketched)\s+(?:in|with|using)\s+{_PAINTS}"
    rf"(?:(?:,\s*|\s+and\s+){_PAINTS})*(?:\s+on\s+(?:paper|canvas))?{_AFTER}",
    _FLAGS,
)
_IN_PAINT = re.compile(
    rf"(?:,\s*|\s+)in\s+(?:black\s+and\s+white|monochrome|watercolou?rs?|oils|ink|pencil|charcoal|sepia){_AFTER}",
    _FLAGS,
)


def without_medium(text: str) -> str:
    """A sentence without the phrases that say its medium, technique or style; as it is where something else may be meant."""
    text = _OPENING.sub(_what_it_shows, text)
    for pattern in (_STYLE, _WITH_PAINT, _IN_PAINT):
        text = pattern.sub(_nothing, text)
    return text


def _what_it_shows(found: re.Match[str]) -> str:
    said = found[0][: found.start("next") - found.start()]
    sentence = re.split(r"[.!?]\s", found.string[found.start() :], maxsplit=1)[0]
    # "a painting of a ship on a wall" may be a room: without the painting the ship would hang there.
    is_in_a_room = re.search(rf"\b{_PAINTED}\b", said, _FLAGS) and _IN_A_ROOM.search(sentence)
    return found[0] if is_in_a_room or _HANGS.search(sentence) else cased_as(said, found["next"])


def _nothing(found: re.Match[str]) -> str:
    """Nothing, unless the words before need the phrase: "is drawn with ink", "dressed in black and white", "her lips painted with"."""
    if found[0].startswith(","):
        return ""
    before = found.string[: found.start()]
    word = last_word(before)
    is_worn = "black" in found[0].casefold() and re.fullmatch(SUBJECTS, word)
    is_owned = re.search(r"\b(?:her|his|their|its)\s+(?:[\w-]+\s+)?[\w-]+$", before, _FLAGS)
    needs_it = re.fullmatch(
        rf"{FINITE}|been|be|and|or|not|written|painting|drawing|face|nails|lips|body|skin|clothes", word
    )
    return found[0] if is_worn or is_owned or needs_it or looks_like_verb(word) else ""
