"""Words that the phrases of captions are told apart by. No torch."""

from __future__ import annotations

import re


def any_of(words: str) -> str:
    """A pattern for one of these words, which blanks stand between; each may itself be a pattern."""
    return f"(?:{'|'.join(words.split())})"


SUBJECTS = any_of(
    "man woman men women girls? boys? person people child children kids? baby babies lady ladies guys? couple family "
    "cats? dogs? kittens? puppy puppies horses? birds? bears? wolf wolves fox foxes dragons? lions? tigers? rabbits? "
    "bunny bunnies animals? creatures? characters? robots? knights? warriors? princess prince queen king elf elves "
    "fairy fairies angels? demons? witch witches wizards? soldiers? sailors? samurai ninja friends? mother father"
)
"""Who captions are about: what follows "and" is then one more of them, and no part of the first."""

THINGS = any_of(
    "hats? caps? helmets? headbands? hairbands? hoods? hoodies? masks? headdress crowns? hairpins? costumes? outfits? "
    "suits? onesies? pajamas robes? cloaks? capes? coats? jackets? shirts? t-shirts? sweaters? dress dresses skirts? "
    "boots shoes slippers gloves collars? scarf bags? backpacks? shields? swords? staff axes? armou?r prints? "
    "planes? airplanes? aircraft jets? kites? plates? bowls? baskets? trays? cups? mugs?"
)
"""What may have ears, horns, a tail, wings or fur, too, and what a trait may be a mere part of: a helmet with horns, a cat hat."""

FINITE = any_of(
    "is are was were stands? sits? lies kneels? walks? runs? poses? holds? wears? carries looks? smiles? plays? rides? "
    "reads? sleeps? eats? drinks? dances? leans? jumps? gazes? stares? appears? seems? fights? points? rests?"
)
"""Verbs that a subject stands before."""

_NO_VERBS = any_of(
    "red bed shed sled king viking being building painting drawing clothing evening morning wedding ring string "
    "railing ceiling"
)


def last_word(text: str) -> str:
    """The word that a text ends with, in lower case; empty behind a comma and at the start."""
    found = re.search(r"([\w'-]+)\s*$", text)
    return found[1].casefold() if found else ""


def looks_like_verb(word: str) -> bool:
    """Whether a word may be the verb that what follows belongs to, as in "covered with"."""
    return word.endswith(("ing", "ed")) and not re.fullmatch(_NO_VERBS, word)


def cased_as(pattern: str, text: str) -> str:
    """The text with a capital where `pattern`, whose place it takes, began with one."""
    return text[:1].upper() + text[1:] if pattern[:1].isupper() else text
