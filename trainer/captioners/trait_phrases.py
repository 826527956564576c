"""Sentences without what a character always is: hair, eyes, skin, ears, tails, horns, wings, beards. No torch.

A phrase goes only where it is sure what holds it: a list behind "with" or "has", an item between commas, or a clause that says nothing else,
and only where the sentence goes on without it. Everything else stays: a trait too many does less harm than a sentence without its verb or noun.
"""

from __future__ import annotations

import re

from trainer.captioners.sentence_words import FINITE, SUBJECTS, THINGS, any_of, cased_as, last_word, looks_like_verb

# No word of expression, pose or state (closed, open, wet, messy, flowing): what has one is not always so, and stays.
_LOOK = any_of(
    "long short medium[-\\s]length shoulder[-\\s]length waist[-\\s]length curly wavy straight spiky thick big large small "
    "bright light dark pale deep black white gr[ae]y silver blonde? golden brown auburn ginger red reddish orange yellow "
    "green blue teal purple violet pink hazel amber brunette multi-?colou?red pointed pointy fluffy furry bushy fair "
    "tan(?:ned)? olive freckled facial full cat dog fox wolf bunny rabbit animal elf demon devil dragon angel feathered"
)
_ADVERB = r"(?:(?:very|both|dirty|platinum|jet)[-\s]+)?"
_ADJECTIVE = rf"(?:{_ADVERB}{_LOOK}(?:-{_LOOK})?(?:,\s*|\s+and\s+|\s+))"
_OF_THE_HEAD = any_of(
    "hair hairstyle hairdo eyes skin beard mustache moustache freckles eyebrows bangs complexion pigtails"
)
_PARTS = any_of("ponytail braids? tails? wings ears horns fur")
_NOUN = rf"(?:{_OF_THE_HEAD}|{_PARTS})"
_TRAIT = rf"(?:(?:an?|the|two)\s+)?{_ADJECTIVE}*+{_NOUN}(?![\w'-])"
_TRAITS = rf"{_TRAIT}(?:(?:,\s*(?:and\s+)?|\s+and\s+|\s+with\s+){_TRAIT})*"
_SURE_TRAIT = rf"(?:an?\s+)?{_ADJECTIVE}++{_OF_THE_HEAD}(?![\w'-])"
_SURE_TRAITS = rf"{_SURE_TRAIT}(?:(?:,\s*(?:and\s+)?|\s+and\s+){_SURE_TRAIT})*"

_OWN = r"(?:her|his|its|their)"
_WORD = r"(?!(?:with|of|on|in|at|and)\b)[\w-]+"
_SUBJECT = rf"(?:an?|the|another|one|two|three|some)\s+(?:{_WORD}\s+){{0,2}}{SUBJECTS}\b(?!\s+(?:{_NOUN}|{THINGS})\b)"
_BODY = any_of(
    "bun buns braids? ponytails? pigtails? twintails updo knot curls dreadlocks plaits? wind breeze air style shape "
    "heads? backs? sides? foreheads? faces? top shoulders? chin neck ends? tips? middle front"
)
_PLACE = (
    r"(?:(?:in\s+front\s+of|next\s+to|in|on|at|near|beside|against|inside|outside|by)\s+(?:an?|the)\s+"
    rf"(?!(?:[\w-]+\s+){{0,2}}{_BODY}\b)|(?:at\s+night|outdoors|outside|indoors|while|who|dressed|seated|surrounded)\b)"
)
# Of the words in -ing only those that a whole figure does: hair blows, falls and flows, eyes glow, tails wag.
_DOING = (
    any_of(
        "standing sitting lying laying kneeling walking running posing holding wearing looking smiling playing riding "
        "reading sleeping eating drinking dancing leaning jumping carrying cooking talking working driving swimming "
        "fighting crouching gazing staring singing writing painting using taking making"
    )
    + rf"\b(?!\s+(?:up|face|on\s+end|(?:down|across|over|on|around|along)\s+(?:{_OWN}|one)\b))"
)
_GOES_ON = rf"(?:{_DOING}|{FINITE}\b|{_PLACE})"
_AFTER = (
    rf"(?=\s*(?:[.;:!?)]|$)|\s+{_GOES_ON}|,?\s+and\s+{_SUBJECT}"
    rf"|\s*,\s*(?:and\s+)?(?:{_GOES_ON}|{_SUBJECT}|(?:she|he|it|they)\b)|\s*,\s*(?:{_OWN}|the)\b)"
)
_NOUNS_BESIDE = any_of(
    "glasses sunglasses earrings makeup jewelry jewellery headphones tattoos piercings lipstick armou?r gloves boots "
    "red black(?!\\s+and\\s+white) white blue green pink yellow purple brown long short big large small closed open"
)
_LIST_GOES_ON = rf"(?!{_SUBJECT})(?:an?\s|{_NOUNS_BESIDE}\b|(?P<own>{_NOUN}\b|{_OWN}\s+(?![^,.;]*\b(?:is|are)\b)))"

_FLAGS = re.IGNORECASE
_START = r"(?:^|(?<=[.!?]\s))"
_BEFORE_MORE = re.compile(
    rf"\b(?P<intro>with|having|has|have)\s+{_TRAITS}(?:(?P<comma>,\s*(?:and\s+)?)|\s+and\s+)(?={_LIST_GOES_ON})", _FLAGS
)
_WHO_HAS = re.compile(rf"\b(who|that|which)\s+(?:has|have)\s+{_TRAITS},?\s+and\s+(?={FINITE}\b)", _FLAGS)
_OPENING = re.compile(rf"{_START}with\s+{_TRAITS},\s+(?P<next>(?:an?|the|this|she|he|it|they)\b)", _FLAGS)
_WITH = re.compile(
    rf"(?:,?\s+and)?(?:,\s*|\s+)(?:with|having|who\s+ha(?:s|ve))\s+{_TRAITS}"
    rf"(?:,?\s+and(?=\s+{_GOES_ON})|,(?=\s+{FINITE}\b))?{_AFTER}",
    _FLAGS,
)
_HAS_AND_DOES = re.compile(
    rf"(?P<start>{_START}(?:she|he|it|they)\b)?\s+(?:has|have)\s+{_TRAITS},?\s+and\s+(?P<again>(?:she|he|it|they)\s+)?(?={FINITE}\b)",
    _FLAGS,
)
_AND_HAS = re.compile(rf",?\s+and\s+(?:(?:she|he|it|they)\s+)?(?:has|have)\s+{_TRAITS}(?=\s*(?:[.;]|$))", _FLAGS)
_ONLY_HAS = re.compile(rf"{_START}(?P<subject>[^,.;!?]+?)\s+(?:has|have)\s+{_TRAITS}\s*(?P<end>[.;!]\s*|$)", _FLAGS)
_BEHIND_OTHERS = re.compile(
    rf"(?P<others>\b(?:with|in|wearing)\s+(?:(?!{_OWN}\b|\w+ing\b){_WORD}\s+){{0,4}}?(?!\w+ing\b){_WORD})"
    rf",?\s+and\s+{_SURE_TRAITS}(?:{_AFTER}|(?=,?\s+and\s+an?\s))",
    _FLAGS,
)
_BETWEEN_COMMAS = re.compile(
    rf",\s*(?:and\s+)?{_SURE_TRAITS}(?=\s*(?:[,.;]|$)|\s+(?:{_DOING}|{_PLACE})|\s+and\s+an?\s)", _FLAGS
)
_LOOKS = rf"{_ADVERB}{_LOOK}(?:(?:,\s*(?:and\s+)?|\s+and\s+){_ADVERB}{_LOOK})*"
_CLAUSE = rf"(?:{_OWN}|the(?:\s+[\w-]+'s)?)\s+{_ADJECTIVE}*+{_NOUN}\s+(?:is|are)\s+{_LOOKS}"
_OWN_SENTENCE = re.compile(
    rf"{_START}{_CLAUSE}(?:\s*[.;]\s*|\s*$|,\s+and\s+(?P<next>(?:she|he|it|they|{_OWN}|the|an?)\b))", _FLAGS
)
_ADDED_CLAUSE = re.compile(rf"(?:,\s*(?:and\s+|while\s+)?|\s+and\s+){_CLAUSE}(?=\s*(?:[.;]|$)|,\s+and\s)", _FLAGS)
_WHOSE = re.compile(rf",?\s+whose\s+{_ADJECTIVE}*+{_NOUN}\s+(?:is|are)\s+{_LOOKS}{_AFTER}", _FLAGS)

_HOLDING_WORDS = any_of(
    "is are was were be but or not play plays along together up down back over made seen shown drawn itself herself "
    "himself themselves hair eyes face body head hand hands one ones other others those to may might"
)


def without_traits(text: str) -> str:
    """A sentence without the phrases that say what a character always is; as it is where it would not stay whole."""
    before = None
    while before != text:
        before = text
        for pattern in (_OWN_SENTENCE, _OPENING):
            text = pattern.sub(lambda found: cased_as(found[0], found["next"] or ""), text)
        for pattern in (_ADDED_CLAUSE, _WHOSE, _AND_HAS):
            text = pattern.sub("", text)
        text = _WHO_HAS.sub(r"\1 ", text)
        text = _HAS_AND_DOES.sub(_what_it_does, text)
        text = _BEFORE_MORE.sub(_rest_of_list, text)
        text = _ONLY_HAS.sub(_whose_sentence, text)
        text = _WITH.sub(lambda found: found[0] if _is_held(found) else "", text)
        text = _BEHIND_OTHERS.sub(lambda found: found[0] if _is_held(found) else found["others"], text)
        text = _BETWEEN_COMMAS.sub("", text)
    return text


def _is_held(found: re.Match[str]) -> bool:
    """Whether a verb needs the phrase ("covered with fur"), or a thing has it ("a helmet with horns")."""
    word = "" if found[0].startswith(",") else last_word(found.string[: found.start()])
    return _is_thing(word, found[0]) or bool(re.fullmatch(_HOLDING_WORDS, word)) or looks_like_verb(word)


def _is_thing(subject: str, traits: str) -> bool:
    return bool(re.fullmatch(THINGS, last_word(subject)) and re.search(rf"\b{_PARTS}\b", traits, _FLAGS))


def _rest_of_list(found: re.Match[str]) -> str:
    """ "with a beard and a hat": what follows still hangs on the first word."""
    if _is_held(found) or (found["comma"] and found["own"]):
        return found[0]
    return f"{found['intro']} "


def _what_it_does(found: re.Match[str]) -> str:
    if _is_held(found) or (found["again"] and not found["start"]):
        return found[0]
    return f"{found['start'] or ''} "


def _whose_sentence(found: re.Match[str]) -> str:
    """A sentence that only says traits goes; of the only one its subject stays."""
    subject, end = found["subject"], found["end"]
    is_pronoun = re.match(r"(?:she|he|it|they)\b", subject, _FLAGS)
    is_known = is_pronoun or re.match(r"(?:the|this)\b", subject, _FLAGS)
    is_all = found[0].strip() == found.string.strip()
    # With a verb of its own the subject is no subject: "A girl pets a dog that has white fur."
    if re.search(rf"\b(?:who|that|which|and|while|what|to|{FINITE})\b", subject, _FLAGS) or _is_thing(
        subject, found[0]
    ):
        return found[0]
    return "" if is_pronoun or (is_known and not is_all) else f"{subject}{end}"
