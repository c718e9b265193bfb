"""Taggers of parts of speech for the mining of significant words: spaCy, NLTK, or rules over lists of words."""

import importlib.util
import re
from collections.abc import Callable
from typing import Any

from vlm_jax.errors import ConfigError, DataError, missing_package

Tagger = Callable[[str], list[tuple[str, str]]]
"""Function that returns the words of a sentence, each with its universal part of speech, such as 'NOUN'."""

TAGGERS = ("spacy", "nltk", "rules")
SPACY_MODEL = "en_core_web_sm"
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|\S")
_FUNCTION_WORDS = set(
    """a an the this that these those some any each every no all both another other such i me my you your he him his she
    her it its we us our they them their one's himself herself itself themselves who whom which what and or but nor so
    if while when as because than then there here of in on at by for from with without to into onto over under up down
    off out about around across through between behind near beside along against during before after above below
    toward towards inside outside upon via not n't also very too just only more most much many few again away back
    together be is am are was were been being do does did has have had having will would can could shall should may
    might must how where why s t""".split()
)
_DETERMINERS = set(
    "a an the this that these those some any each every no another his her its my your our their".split()
)
_NUMBERS = set("one two three four five six seven eight nine ten eleven twelve twenty fifty hundred thousand".split())
_ADJECTIVES = set(
    """big small large little long short tall high low old young new good bad great nice beautiful pretty happy sad red
    blue green yellow black white brown grey gray orange purple pink dark light bright hot cold warm cool wet dry clean
    dirty full empty open closed fast slow quick hard soft heavy deep wide narrow round flat rich poor busy quiet loud
    strong weak fresh raw ripe sweet sour wild live modern ancient wooden golden different same several various own
    first second third last next main female male human asian american european chinese indian""".split()
)
_VERBS = set(
    """go come get make take give put let run walk sit stand lie sleep eat drink cook cut chop mix stir add pour bake
    fry boil grill wash clean dry play sing dance jump ride drive fly swim climb throw catch kick hit push pull hold
    carry open close turn move look watch see show talk speak say tell ask explain describe discuss laugh smile cry hug
    kiss read write draw paint work build fix repair use try start begin stop finish fall rise grow feed wear fold wrap
    touch press wait follow lead win lose fight shoot score perform prepare serve enjoy relax rest flow float
    wave shake spin slide roll bring leave enter keep find buy sell pay learn teach study cross pass meet""".split()
)
_ADJECTIVE_ENDS = ("ful", "ous", "ive", "able", "ible", "less", "ish", "al", "ic")
_ENDS_OF_VERBS = ("ing", "ed", "es", "s")


def default_tagger() -> str:
    """Return the name of the best tagger whose package is installed."""
    return next((name for name in ("spacy", "nltk") if importlib.util.find_spec(name)), "rules")


def make_tagger(name: str) -> Tagger:
    """Return a tagger by its name: 'spacy' (the reference's), 'nltk' or 'rules', which needs no package.

    Raises:
      ConfigError: If the name is unknown.
      MissingPackageError: If the tagger's package is missing.
      DataError: If the tagger's model is missing.
    """
    makers = dict(zip(TAGGERS, (_spacy, _nltk, lambda: tag_by_rules), strict=True))
    if name not in makers:
        raise ConfigError(f"tagger: {name!r} is not one of {', '.join(makers)}")
    try:
        return makers[name]()
    except ImportError as error:
        raise missing_package(error) from None


def make_lemmatizer(name: str) -> Callable[[str], str]:
    """Return a function from a word to its lemma: spaCy's for the tagger 'spacy', else `lemma`.

    Raises:
      MissingPackageError: If spaCy is wanted and missing.
      DataError: If its model is missing.
    """
    if name != "spacy":
        return lemma
    try:
        parse = _load_spacy("parser", "ner")
    except ImportError as error:
        raise missing_package(error) from None
    return lambda word: parse(word)[0].lemma_


def _spacy() -> Tagger:
    parse = _load_spacy("parser", "ner", "lemmatizer")
    return lambda sentence: [(token.text, token.pos_) for token in parse(sentence)]


def _load_spacy(*without: str) -> Callable[[str], Any]:
    import spacy

    try:
        return spacy.load(SPACY_MODEL, disable=list(without))
    except OSError:
        raise DataError(
            f"tagger 'spacy': no model {SPACY_MODEL}; python -m spacy download {SPACY_MODEL}, or use 'rules'"
        ) from None


def _nltk() -> Tagger:
    import nltk

    def tag(sentence: str) -> list[tuple[str, str]]:
        return nltk.pos_tag(nltk.word_tokenize(sentence), tagset="universal")

    try:
        tag("A man plays.")
    except LookupError:
        data = "punkt_tab averaged_perceptron_tagger_eng universal_tagset"
        raise DataError(f"tagger 'nltk': no model; python -m nltk.downloader {data}, or use 'rules'") from None
    return tag


def tag_by_rules(sentence: str) -> list[tuple[str, str]]:
    """Return the words of an English sentence with parts of speech by lists and endings.

    A word that no rule knows is a noun. The tags are good enough to rank the words of captions, not for grammar.
    """
    tagged: list[tuple[str, str]] = []
    for word in _WORD.findall(sentence):
        tagged.append((word, _kind(word.lower(), tagged[-1] if tagged else ("", ""))))
    return tagged


def _kind(word: str, before: tuple[str, str]) -> str:
    """Return the part of speech of a word after the tagged word before it."""
    if not any(map(str.isalnum, word)):
        return "PUNCT"
    if word in _NUMBERS or word[0].isdigit():
        return "NUM"
    if word in _FUNCTION_WORDS:
        return "X"
    if word in _ADJECTIVES:
        return "ADJ"
    described = before[0].lower() in _DETERMINERS or before[1] in ("ADJ", "NUM")
    if not described and (lemma(word) in _VERBS or word in _VERBS):
        return "VERB"
    if word.endswith(_ADJECTIVE_ENDS) and len(word) > 5:
        return "ADJ"
    return "VERB" if not described and len(word) > 4 and word.endswith(("ing", "ed")) else "NOUN"


def lemma(word: str) -> str:
    """Return the lemma of an English word by its ending: 'running' and 'runs' give 'run'. Irregular forms stay."""
    for end in _ENDS_OF_VERBS:
        stem = word.removesuffix(end)
        if stem == word or len(stem) < 3 or (end == "s" and stem.endswith(("s", "u", "i"))):
            continue
        if end in ("es", "ed") and stem.endswith("i"):
            return stem[:-1] + "y"
        if end == "es" and not stem.endswith(("ss", "x", "zz", "tz", "ch", "sh", "o")):
            continue
        if end in ("s", "es"):
            return stem
        if stem[-1] == stem[-2] and stem[-1] not in "lsz":
            return stem[:-1]
        needs_e = stem not in _VERBS and stem + "e" in _VERBS
        return stem + "e" if needs_e else stem
    return word
