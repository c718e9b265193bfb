"""Vectors of sentences from a trained text tower, for the commands."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from vlm_jax import inference
from vlm_jax.errors import ConfigError
from vlm_jax.systems.milnce.task import WORD_TABLE
from vlm_jax.text import word_list
from vlm_jax.text_features import TextSettings

LAYERS = ("sentence", "words")
"""The tower's embedding `[S]`, or the word table's rows of the known words `[L, C]`."""
BATCH = 64
"""Sentences that are encoded at the same time."""


class Encoded(NamedTuple):
    """Vectors by name, the names of sentences without a known word, and what the vectors were made with."""

    vectors: dict[str, np.ndarray]
    unknown: list[str]
    settings: TextSettings


def encode(checkpoint: str, sentences: Mapping[str, str], layer: str, vocabulary: str = "") -> Encoded:
    """Encodes sentences, by name, with the text tower of a checkpoint.

    Args:
      checkpoint: As `inference.load` takes it.
      sentences: By name.
      layer: One of `LAYERS`.
      vocabulary: Word list instead of the checkpoint's.

    Raises:
      ConfigError: where the checkpoint has no text tower, or no sentence has a known word.
    """
    model = inference.load(checkpoint, vocabulary=vocabulary)
    if "text" not in model.config:
        raise ConfigError(f"{checkpoint}: a checkpoint of {model.config.task}; expected one with a text tower (milnce)")
    jax.config.update("jax_default_matmul_precision", model.config.matmul_precision)
    text = model.config.text
    ids = dict(zip(sentences, model.word_ids(list(sentences.values())), strict=True)) if sentences else {}
    known = [name for name in sentences if ids[name].any()]
    unknown = [name for name in sentences if not ids[name].any()]
    if not known:
        raise ConfigError(f"{text.vocabulary}: none of {len(sentences)} sentences has a word of this list")
    if layer == "words":
        table = np.asarray(_at(model.variables, WORD_TABLE))
        vectors = {name: table[ids[name][ids[name] > 0]] for name in known}
    else:
        vectors = {}
        for begin in range(0, len(known), BATCH):
            names = known[begin : begin + BATCH]
            filled = [sentences[name] for name in names] + [""] * (BATCH - len(names))  # compiled for one size
            vectors |= dict(zip(names, model.encode_text(filled), strict=False))
    words = word_list.load(text.vocabulary, text.rows)
    settings = TextSettings(
        layer=layer,
        dim=vectors[known[0]].shape[-1],
        fingerprint=model.fingerprint(),
        vocabulary=hashlib.sha256("\n".join(words).encode()).hexdigest(),
        lower_case=text.lower_case,
        max_words=text.max_words_raw,
        checkpoint=checkpoint,
    )
    return Encoded(vectors, unknown, settings)


def _at(tree: Mapping, path: tuple[str, ...]) -> np.ndarray:
    for name in path:
        tree = tree[name]
    return tree
