"""Masking of significant words (SNP-S3, MSSM), and the choice of words for local vision-word matching (LVWM).

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp. Draws come from the generator of the example, in the
reference's order.
"""

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from vlm_jax.errors import ConfigError
from vlm_jax.text.masking import IGNORED
from vlm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class SignificantWords:
    """Tokens of a vocabulary that are words with a meaning of their own, frequent in the captions.

    Attributes:
      significant: True for a significant token, bool `[vocabulary size]`.
      groups: Words with the same lemma, by token; a token without an entry has none.
    """

    significant: np.ndarray
    groups: dict[int, Sequence[str]]

    @classmethod
    def from_ranks(cls, ranks: np.ndarray, top: int, groups: dict[int, Sequence[str]]) -> "SignificantWords":
        """Return the significant words of ranks `[vocabulary size]`, from 0: those of at most `top`.

        Raises:
          ConfigError: If this would be all tokens, because fewer than `top` were ever counted.
        """
        if np.max(ranks) <= top:
            raise ConfigError(f"words_top_k: expected less than the largest rank {np.max(ranks)}, found {top}")
        return cls(np.asarray(ranks) <= top, groups)

    @property
    def ids(self) -> np.ndarray:
        """Return the ids of the significant tokens in order."""
        return np.flatnonzero(self.significant)


def number_to_mask(length: int, probability: float = 0.15) -> int:
    """Return the number of tokens to mask: `probability * length`, rounded up where the remainder is at least 0.3."""
    share = probability * length
    return int(share) + int(share - int(share) >= 0.3)


def mask_significant(
    ids: Sequence[int],
    words: SignificantWords,
    random: np.random.Generator,
    tokenizer: Tokenizer,
    probability: float = 0.15,
    strict: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids after masking, and the labels: the original id where a token was chosen, else `IGNORED`.

    Significant tokens are chosen first, and others only where there are too few. Of the significant ones chosen, 80 %
    become the mask token, 10 % a significant word's inflection, and 10 % stay; others always become the mask token.

    Args:
      ids: Ids of a text, without special tokens, `[L]`.
      words: Significant words.
      random: Generator of the example.
      tokenizer: Tokeniser of the ids.
      probability: Share of the tokens to mask; see `number_to_mask`.
      strict: If true, three slips of the reference are kept. The draws among the other tokens are positions in the
        whole text. These tokens have the mask token as label. A significant word without inflections is replaced by the
        first character of its piece instead of itself.

    Returns:
      Masked ids and labels, int32 `[L]` each.
    """
    masked, labels = np.array(ids, np.int32), np.full(len(ids), IGNORED, np.int32)
    significant = words.significant[masked] if len(ids) else np.zeros(0, bool)
    chosen, others = np.flatnonzero(significant), np.flatnonzero(~significant)
    number = number_to_mask(len(ids), probability)
    if number <= len(chosen):
        chosen = np.sort(chosen[random.choice(len(chosen), number, replace=False)])
    else:
        drawn = random.choice(len(others), number - len(chosen), replace=False)
        places = np.asarray(drawn, int) if strict else others[drawn]
        labels[places] = tokenizer.mask_id if strict else masked[places]
        masked[places] = tokenizer.mask_id
    for place in chosen:
        labels[place] = masked[place]
        drawn = random.random()
        if drawn < 0.8:
            masked[place] = tokenizer.mask_id
        elif drawn < 0.9:
            masked[place] = _inflection(words, random, tokenizer, strict)
    return masked, labels


def _inflection(words: SignificantWords, random: np.random.Generator, tokenizer: Tokenizer, strict: bool) -> int:
    token = int(words.ids[random.integers(len(words.ids))])
    if group := words.groups.get(token):
        return tokenizer.id_of(group[random.integers(len(group))])
    return tokenizer.id_of(tokenizer.piece(token)[0]) if strict else token


def restore(ids: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return masked ids with the labels put back, `[..., L]`."""
    return np.where(labels == IGNORED, ids, labels)


def choose_words(
    ids: np.ndarray, words: SignificantWords, random: np.random.Generator, special: Collection[int], number: int = 3
) -> np.ndarray:
    """Return positions of words for local matching, int32 `[number]`.

    They are drawn from the significant tokens; if there are none, from all but the special tokens; if there are none
    either, they are the first positions. Where there are fewer than `number`, drawn ones are repeated.

    Args:
      ids: Ids of an unmasked caption with its special tokens, `[L]`.
      words: Significant words.
      random: Generator of the example.
      special: Ids of padding, CLS, SEP and the mask token.
      number: Number of words to choose.
    """
    places = np.flatnonzero(words.significant[ids])
    if not len(places):
        places = np.flatnonzero(~np.isin(ids, list(special)))
    if not len(places):
        places = np.arange(number)
    if len(places) > number:
        return places[random.choice(len(places), number, replace=False)].astype(np.int32)
    chosen = places.tolist()
    while len(chosen) < number:
        chosen.append(chosen[random.integers(len(chosen))])
    return np.array(chosen, np.int32)
