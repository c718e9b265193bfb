"""Text arrays of an example: raw, masked and false captions, and the words for local matching.

Source: alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm_jax.systems.snps3.masking import SignificantWords, choose_words, mask_significant, restore
from vlm_jax.text.masking import IGNORED, mask_tokens
from vlm_jax.text.tokenizer import Tokenizer, frame, padded, window

DUMMY = "this is a dummy text"
"""Caption of no video, for a draw of false captions that found only the video's own."""
DRAWS = 3


@dataclasses.dataclass(frozen=True)
class CaptionSettings:
    """How captions become arrays.

    Attributes:
      tokenizer: Tokeniser.
      length: Number of tokens of every text, L.
      words: Significant words, which are masked first, and chosen for local matching; None masks all words alike.
      mask_significant: If false, all words are masked alike in any case.
      number_of_words: Number of words for local matching, W.
      strict: If true, the reference's slips are kept: the raw and the masked caption have windows of their own, and
        those of `mask_significant`.
    """

    tokenizer: Tokenizer
    length: int = 30
    words: SignificantWords | None = None
    mask_significant: bool = True
    number_of_words: int = 3
    strict: bool = False


def fixed_text(text: str, settings: CaptionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask of the beginning of a text, int32 `[L]` each."""
    return _framed(settings.tokenizer.encode(text), settings, None)


def masked_caption(
    caption: str, false_caption: str, random: np.random.Generator, settings: CaptionSettings
) -> dict[str, np.ndarray]:
    """Return the text arrays of a pre-training example, int32 `[L]` each; `words`, `[W]`, with significant words.

    Args:
      caption: Caption of the example.
      false_caption: Caption of another video.
      random: Generator of the example.
      settings: Settings.

    Returns:
      `raw` and `raw_mask`, ids and mask of the caption; `masked` and `labels`, its ids with masks and their labels;
      `false` and `false_mask`; and `words`, positions of the words for local matching.
    """
    tokenizer, length = settings.tokenizer, settings.length
    ids = tokenizer.encode(caption)
    part = window(len(ids), length, random)
    raw, mask = frame(ids[part], length, tokenizer)
    if settings.strict:
        part = window(len(ids), length, random)
    if settings.words is None or not settings.mask_significant:
        found, labels = mask_tokens(ids[part], random, tokenizer)
    else:
        found, labels = mask_significant(ids[part], settings.words, random, tokenizer, strict=settings.strict)
    masked, _ = frame(found.tolist(), length, tokenizer)
    labels = padded([IGNORED, *labels], length, IGNORED)
    false, false_mask = _framed(tokenizer.encode(false_caption), settings, random)
    arrays = {
        "raw": raw,
        "raw_mask": mask,
        "masked": masked,
        "labels": labels,
        "false": false,
        "false_mask": false_mask,
    }
    if settings.words is not None:
        special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id)
        chosen = choose_words(restore(masked, labels), settings.words, random, special, settings.number_of_words)
        arrays["words"] = chosen
    return arrays


def draw_false_caption(
    captions: Sequence[Sequence[str]], videos: Sequence[int], own: int, random: np.random.Generator
) -> str:
    """Return a caption of another video: that of a random item, or `DUMMY` after three draws of the own video.

    Args:
      captions: Captions of each item, one or more.
      videos: Number of each item's video.
      own: Number of the example's item.
      random: Generator of the example.
    """
    for _ in range(DRAWS):
        item = int(random.integers(len(captions)))
        if videos[item] != videos[own]:
            return captions[item][random.integers(len(captions[item]))]
    return DUMMY


def _framed(
    ids: Sequence[int], settings: CaptionSettings, random: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    return frame(ids[window(len(ids), settings.length, random)], settings.length, settings.tokenizer)
