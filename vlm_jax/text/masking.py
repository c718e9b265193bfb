"""Masking of tokens for masked language modelling (Devlin et al. 2019, section 3.1)."""

from collections.abc import Sequence

import numpy as np

from vlm_jax.text.tokenizer import Tokenizer

IGNORED = -1
"""Label of a token that the loss leaves out."""


def mask_tokens(
    ids: Sequence[int], random: np.random.Generator, tokenizer: Tokenizer, probability: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids after masking, and the labels: the original id where a token was chosen, else `IGNORED`.

    Every token is chosen with a probability. Of the chosen ones, 80 % become the mask token, 10 % a uniform token of
    the vocabulary, and 10 % stay. One number is drawn per token, and another one for a token of the vocabulary.

    Args:
      ids: Ids of a text, without special tokens, `[L]`.
      random: Generator of the example.
      tokenizer: Tokeniser of the ids.
      probability: Probability of a token to be chosen.

    Returns:
      Masked ids and labels, int32 `[L]` each.
    """
    masked, labels = np.array(ids, np.int32), np.full(len(ids), IGNORED, np.int32)
    for place, token in enumerate(ids):
        drawn = random.random() / probability
        if drawn >= 1:
            continue
        labels[place] = token
        if drawn < 0.8:
            masked[place] = tokenizer.mask_id
        elif drawn < 0.9:
            masked[place] = random.integers(tokenizer.vocabulary_size)
    return masked, labels
