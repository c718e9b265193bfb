"""Conversion of checkpoints of antoine77340/MIL-NCE_HowTo100M (training) and antoine77340/S3D_HowTo100M (released)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.interop.released import Released, ReleasedData
from vlm_jax.interop.rules import CONV3D, LINEAR, ConversionError, Rule, convert, invert, state_dict_of

_WILLOW = "https://www.rocq.inria.fr/cluster-willow/amiech/howto100m"
RELEASED = {
    "milnce": Released(
        f"{_WILLOW}/s3d_howto100m.pth", "antoine77340/S3D_HowTo100M", {"text.vocabulary": f"{_WILLOW}/s3d_dict.npy"}
    )
}
"""Published checkpoints by name."""
_TRAINING = "antoine77340/MIL-NCE_HowTo100M"
_AMIECH = "https://www.rocq.inria.fr/cluster-willow/amiech"
RELEASED_DATA = {
    "word2vec": ReleasedData(
        "word vectors and word list of training, data/word2vec.pth and data/dict.npy",
        _TRAINING,
        {"word2vec.zip": f"{_AMIECH}/word2vec.zip"},
    ),
    "howto100m_captions": ReleasedData(
        "captions of HowTo100M, a csv per video",
        _TRAINING,
        {"howto100m_captions.zip": f"{_AMIECH}/howto100m/howto100m_captions.zip"},
    ),
    "howto100m_videos": ReleasedData(
        "videos of HowTo100M, 12 TB, on request", _TRAINING, {"howto100m": "https://forms.gle/hztrfnFQUJWBtiki8"}
    ),
    "youcook2": ReleasedData(
        "validation videos of YouCook2", _TRAINING, {"Youcook2_val.zip": f"{_AMIECH}/Youcook2_val.zip"}
    ),
    "msrvtt": ReleasedData(
        "test videos of MSR-VTT", _TRAINING, {"msrvtt": "https://www.mediafire.com/folder/h14iarbs62e7p/shared"}
    ),
}
"""Published data by name."""

STEM = "conv1.conv1.weight"
TABLE = "text_module.word_embd.weight"
COLOURS = 3
"""Channels that the plain stem reads; the folded one reads 24."""

RULES = (
    Rule(TABLE, "frozen/text/word_embd"),
    Rule("text_module.{layer}.weight", "params/text/{layer}/kernel", LINEAR),
    Rule("text_module.{layer}.bias", "params/text/{layer}/bias"),
    Rule("{unit*}.conv{n}.weight", "params/video/{unit*}/conv{n}/kernel", CONV3D),
    Rule("{unit*}.bn{n}.weight", "params/video/{unit*}/bn{n}/scale"),
    Rule("{unit*}.bn{n}.bias", "params/video/{unit*}/bn{n}/bias"),
    Rule("{unit*}.bn{n}.running_mean", "batch_stats/video/{unit*}/bn{n}/mean"),
    Rule("{unit*}.bn{n}.running_var", "batch_stats/video/{unit*}/bn{n}/var"),
    Rule.dropped("{unit*}.bn{n}.num_batches_tracked", like="batch_stats/video/{unit*}/bn{n}/mean", value=np.int64(0)),
    Rule("{layer*}.weight", "params/video/{layer*}/kernel", LINEAR),
    Rule("{layer*}.bias", "params/video/{layer*}/bias"),
)


def state_dict(source: Any) -> dict[str, np.ndarray]:
    """Return the state dict of a loaded `epochNNNN.pth.tar` or of a bare state dict, without the prefix `module.`.

    Raises:
      ConversionError: If the file holds something else.
    """
    return state_dict_of(source, "MIL-NCE", (STEM, TABLE))


def model_options(source: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the config keys that a state dict decides, by section: stem and sizes.

    The shape of the stem's kernel tells the released model, which has the space-to-depth stem. Its text tower
    lower-cases sentences and keeps 16 words.

    Raises:
      ConversionError: If the stem has another shape.
    """
    kernel = source[STEM].shape
    stems = {(3, 3, 7, 7): False, (24, 2, 4, 4): True}
    if kernel[1:] not in stems:
        raise ConversionError(f"{STEM}: expected (C, 3, 3, 7, 7) or (C, 24, 2, 4, 4), found {kernel}")
    rows, word_dim = source[TABLE].shape
    released = stems[kernel[1:]]
    sentences = {"lower_case_raw": True, "max_words_raw": 16} if released else {}
    return {
        "model": {
            "space_to_depth": released,
            "embedding_dim": source["fc.weight"].shape[0],
            "text_hidden_dim": source["text_module.fc1.weight"].shape[0],
        },
        "text": {"rows": rows, "word_dim": word_dim, "word2vec": "", "vocabulary": "", **sentences},
    }


def to_variables(source: Mapping[str, np.ndarray], expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Convert a state dict to variables.

    Args:
      source: State dict from `state_dict`.
      expected: Shapes of the variables, which must match exactly.

    Raises:
      ConversionError: If names are unused, missing, or of another shape; it lists them.
    """
    return convert(source, RULES, expected)


def file_content(arrays: Mapping[str, np.ndarray], epoch: int) -> dict[str, Any]:
    """What a file holds: the reference's scripts tell a training checkpoint from the released file by `state_dict`.

    They give a training checkpoint the plain stem and the prefix that its parallel model puts before the names, and a
    bare state dict the folded stem.
    """
    if arrays[STEM].shape[1] != COLOURS:
        return dict(arrays)
    return {"epoch": epoch, "state_dict": {f"module.{name}": array for name, array in arrays.items()}}


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables to a state dict with the reference's names."""
    return invert(variables, RULES)
