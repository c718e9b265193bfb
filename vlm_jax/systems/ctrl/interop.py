"""Conversion of CTRL checkpoints of PaddlePaddle/models (`TALL.pdparams`) and jiyanggao/TALL, and sentence files."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.interop.released import Released, ReleasedData
from vlm_jax.interop.rules import ConversionError, Rule, Transform, convert, invert

RELEASED = {
    "ctrl": Released(
        "https://paddlemodels.bj.bcebos.com/video_grounding/TALL.pdparams",
        "PaddlePaddle/models release/1.8, PaddleCV/video",
    )
}
"""Published checkpoints by name."""
_DRIVE, _ORIGINAL = "https://drive.google.com/file/d", "jiyanggao/TALL"
RELEASED_DATA = {
    "tacos_windows_train": ReleasedData(
        "C3D features of TACoS's training windows",
        _ORIGINAL,
        {"Interval64_128_256_512_overlap0.8_c3d_fc6": f"{_DRIVE}/1zQp0aYGFCm8PqqHOh4UtXfy2U3pJMBeu"},
    ),
    "tacos_windows_test": ReleasedData(
        "C3D features of TACoS's test windows",
        _ORIGINAL,
        {"Interval128_256_overlap0.8_c3d_fc6": f"{_DRIVE}/1zC-UrspRf42Qiu5prQw4fQrbgLQfJN-P"},
    ),
    "tacos_sentences": ReleasedData(
        "skip-thought vectors of TACoS's sentences",
        _ORIGINAL,
        {"exp_data": f"{_DRIVE}/1HF-hNFPvLrHwI5O7YvYKZWTeTxC5Mg1K"},
    ),
    "charades_sta": ReleasedData(
        "annotations of Charades-STA",
        _ORIGINAL,
        {
            "charades_sta_train.txt": f"{_DRIVE}/1ZjG7wJpPSMIBYnW7BAG2u9VVEoNvFm5c",
            "charades_sta_test.txt": f"{_DRIVE}/1QG4MXFkoj6JFU0YK5olTY75xTARKSW5e",
        },
    ),
}
"""Published data by name."""

ENDING = ".pdparams"
"""Of the files that the reference's scripts load."""

PADDLE = ("v2s_lt_weights", "s2s_lt_weights", "mid_out_weights", "sim_mat_weights")
PREFIX = "CTRL_Model/"
ORIGINAL = ("v2s_lt", "s2s_lt", "vs_multilayer_lt/layer1", "vs_multilayer_lt/layer2")
OURS = ("clip_projection", "sentence_projection", "hidden", "output")

# Kernels of 1x1 convolutions, output channels first or last: [O, I, 1, 1] or [1, 1, I, O] <-> [I, O].
FIRST = Transform(lambda array: np.squeeze(array, (2, 3)).T, lambda array: array.T[..., None, None])
LAST = Transform(lambda array: np.squeeze(array, (0, 1)), lambda array: array[None, None])

PADDLE_RULES = (
    *(Rule(name, f"params/{ours}/kernel") for name, ours in zip(PADDLE[:2], OURS[:2], strict=True)),
    *(Rule(name, f"params/{ours}/kernel", FIRST) for name, ours in zip(PADDLE[2:], OURS[2:], strict=True)),
)
ORIGINAL_RULES = tuple(
    rule
    for name, ours in zip(ORIGINAL, OURS, strict=True)
    for rule in (
        Rule(
            f"{PREFIX}{name}/weights".replace("/", "."),
            f"params/{ours}/kernel",
            *([LAST] if "layer" in name else []),
        ),
        Rule(f"{PREFIX}{name}/biases".replace("/", "."), f"params/{ours}/bias"),
    )
)


class ClipSentences(NamedTuple):
    """Sentences about one moment of the ground truth.

    Attributes:
      name: Name of the moment, such as 's13-d21.avi_92_140'.
      vectors: Embeddings of its sentences, float32 `[N, S]`.
    """

    name: str
    vectors: np.ndarray


def state_dict(source: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint under the names of its reference.

    Raises:
      ConversionError: If the names are those of neither reference.
    """
    found = dict(source) if isinstance(source, Mapping) else {}
    found = {name.removesuffix(":0"): value for name, value in found.items() if isinstance(name, str)}
    if not found or (PADDLE[0] not in found and not _is_original(found)):
        raise ConversionError(
            f"not a CTRL checkpoint: it has neither {PADDLE[0]!r} nor {PREFIX + ORIGINAL[0] + '/weights'!r} "
            f"(its first name is {next(iter(found), None)!r})"
        )
    return found


def model_options(source: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the config keys that a state dict decides, by section."""
    original = _is_original(source)
    visual, sentence, hidden = (
        source[name] for name in ([f"{PREFIX}{layer}/weights" for layer in ORIGINAL[:3]] if original else PADDLE[:3])
    )
    return {
        "model": {
            "visual_dim": visual.shape[0],
            "sentence_dim": sentence.shape[0],
            "dim": visual.shape[1],
            "hidden_dim": hidden.shape[-1 if original else 0],
            "use_bias": original,
            "normalisation": "floor" if original else "added",
        }
    }


def to_variables(source: Mapping[str, np.ndarray], expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Convert a state dict to variables; raises ConversionError for names or shapes that do not fit `expected`."""
    if _is_original(source):
        return convert({name.replace("/", "."): array for name, array in source.items()}, ORIGINAL_RULES, expected)
    return convert(source, PADDLE_RULES, expected)


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables to a state dict with the names of jiyanggao/TALL if there are biases, else with Paddle's."""
    if "bias" in variables["params"][OURS[0]]:
        return {name.replace(".", "/"): array for name, array in invert(variables, ORIGINAL_RULES).items()}
    return invert(variables, PADDLE_RULES)


def clip_sentences(content: Any, dim: int) -> list[ClipSentences]:
    """Return the moments of `train_clip-sentvec.pkl` with their sentences' vectors, cut to `dim` numbers.

    Args:
      content: List of `[name, [vector, ...]]`; names are text or bytes (the files were written by Python 2).
      dim: Size of a vector, S.

    Raises:
      ConversionError: If an entry has another form; it names the first one.
    """
    if not isinstance(content, list | tuple):
        raise ConversionError(f"sentence vectors: expected a list of [name, [vector, ...]], found {type(content)}")
    found = []
    for number, entry in enumerate(content):
        try:
            name, vectors = entry
            rows = [np.asarray(vector, np.float32).reshape(-1) for vector in vectors]
        except (TypeError, ValueError):
            raise ConversionError(f"sentence vectors: entry {number} is not [name, [vector, ...]]") from None
        name = name.decode("latin1") if isinstance(name, bytes) else name
        short = [len(row) for row in rows if len(row) < dim]
        if not isinstance(name, str) or short:
            detail = f"a vector of {short[0]} numbers, expected {dim}" if short else f"the name {name!r}"
            raise ConversionError(f"sentence vectors: entry {number} has {detail}")
        found.append(ClipSentences(name, np.stack([row[:dim] for row in rows]) if rows else np.zeros((0, dim), "f4")))
    return found


def _is_original(source: Mapping[str, Any]) -> bool:
    return f"{PREFIX}{ORIGINAL[0]}/weights" in source
