"""Conversion of checkpoints of antoine77340/MIL-NCE_HowTo100M (training) and antoine77340/S3D_HowTo100M (released)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.interop.released import Released
from vlm_jax.interop.rules import CONV3D, LINEAR, ConversionError, Rule, convert, invert, strip_prefix

_WILLOW = "https://www.rocq.inria.fr/cluster-willow/amiech/howto100m"
RELEASED = {
    "milnce": Released(
        f"{_WILLOW}/s3d_howto100m.pth", "antoine77340/S3D_HowTo100M", {"text.vocabulary": f"{_WILLOW}/s3d_dict.npy"}
    )
}
"""Published checkpoints by name."""

STEM = "conv1.conv1.weight"
TABLE = "text_module.word_embd.weight"

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
    content = source.get("state_dict", source) if isinstance(source, Mapping) else source
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"not a MIL-NCE checkpoint: expected a state dict, found a {type(content).__name__}")
    content = strip_prefix(content, "module.")
    for name in (STEM, TABLE):
        if name not in content:
            raise ConversionError(
                f"not a MIL-NCE checkpoint: it has no {name!r} (its first name is {next(iter(content))!r})"
            )
    return content


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


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables to a state dict with the reference's names."""
    return invert(variables, RULES)
