"""Conversion of GroundNLQ checkpoints (houzhijian/GroundNLQ)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.interop.released import Released, ReleasedData
from vlm_jax.interop.rules import (
    CONV1D,
    POINTWISE,
    VECTOR,
    WINDOW_BIAS,
    ConversionError,
    Rule,
    Transform,
    convert,
    invert,
    strip_prefix,
)

_ARCHIVE = "https://drive.google.com/file/d/1tyrVLcs0m0svA6TZpubX_VlpjAvLU18F"
_ORIGIN = f"houzhijian/GroundNLQ, from the archive at {_ARCHIVE}"
RELEASED = {
    "groundnlq": Released("groundnlq.pth.tar", _ORIGIN),
    "groundnlq_star": Released("groundnlq_star.pth.tar", _ORIGIN),
}
"""Published checkpoints by name. They lie in one archive; the names of the files are ours."""
_BOX = "https://utexas.box.com/shared/static"
RELEASED_DATA = {
    "ego4d_nlq": ReleasedData(
        "features, annotations and checkpoints in one archive of 10 GB", "houzhijian/GroundNLQ", {"ego4d_nlq": _ARCHIVE}
    ),
    "egovlp": ReleasedData(
        "EgoVLP features of Ego4D's clips",
        "srama2512/NaQ",
        {"egovlp.zip": f"{_BOX}/ixinsqrbscbnbpmeg1ac5ebyz16rz9km.zip"},
    ),
    "internvideo": ReleasedData(
        "EgoVLP and InternVideo features of Ego4D's clips, parts of one zip file",
        "srama2512/NaQ",
        {
            "internvideo.zip": f"{_BOX}/aikunogcjyy678fh3tb7n0ct2fq5ackk.zip",
            "internvideo.z01": f"{_BOX}/hlpf68z8xdf24qt64wy9d0pfcvjyf7eg.z01",
            "internvideo.z02": f"{_BOX}/e34ibqqhuq6ygy1xbo8o8r95yk2ubj0v.z02",
        },
    ),
}
"""Published data by name."""
HOLDS_AVERAGE = True
"""If true, checkpoint files hold a running average of the parameters, too."""

FIRST = "backbone.vid_embd.0.conv.weight"


def _layer(theirs: str, ours: str, transform: Transform) -> tuple[Rule, Rule]:
    """Return the rules for kernel and bias of a convolution or projection."""
    return Rule(f"{theirs}.weight", f"params/{ours}/kernel", transform), Rule(f"{theirs}.bias", f"params/{ours}/bias")


def _norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{theirs}.weight", f"params/{ours}/scale", VECTOR),
        Rule(f"{theirs}.bias", f"params/{ours}/bias", VECTOR),
    )


def _embedding(theirs: str, ours: str) -> tuple[Rule, ...]:
    # Norms first: `{ours}_{n}` would take their names too.
    return (
        *_norm(f"backbone.{theirs}_norm.{{n}}", f"{ours}_norm_{{n}}"),
        *_layer(f"backbone.{theirs}.{{n}}.conv", f"{ours}_{{n}}", CONV1D),
    )


def _blocks(theirs: str, ours: str) -> tuple[Rule, ...]:
    theirs, ours = f"backbone.{theirs}.{{n}}", f"{ours}_{{n}}"
    attentions = (("attn", "attention"), ("cross_attn", "cross_attention"))
    return (
        *_norm(f"{theirs}.ln{{k}}", f"{ours}/norm{{k}}"),
        *_layer(f"{theirs}.attn.{{part}}_conv.conv", f"{ours}/attention/{{part}}_conv", CONV1D),
        *_norm(f"{theirs}.attn.{{part}}_norm", f"{ours}/attention/{{part}}_norm"),
        Rule(f"{theirs}.attn.rel_pe", f"params/{ours}/attention/relative_bias", WINDOW_BIAS),
        *(
            rule
            for attention, name in attentions
            for rule in (
                *_layer(f"{theirs}.{attention}.proj", f"{ours}/{name}/project", POINTWISE),
                *_layer(f"{theirs}.{attention}.{{part}}", f"{ours}/{name}/{{part}}", POINTWISE),
            )
        ),
        *_layer(f"{theirs}.mlp.0", f"{ours}/mlp_in", POINTWISE),
        *_layer(f"{theirs}.mlp.3", f"{ours}/mlp_out", POINTWISE),
        Rule(f"{theirs}.drop_path_attn.scale", f"params/{ours}/drop_attention/scale", VECTOR),
        Rule(f"{theirs}.drop_path_mlp.scale", f"params/{ours}/drop_mlp/scale", VECTOR),
    )


def _head(theirs: str, last: str, ours: str) -> tuple[Rule, ...]:
    return (
        *_layer(f"{theirs}.head.{{n}}.conv", f"{ours}/conv{{n}}", CONV1D),
        *_norm(f"{theirs}.norm.{{n}}", f"{ours}/norm{{n}}"),
        *_layer(f"{theirs}.{last}.conv", f"{ours}/output", CONV1D),
    )


RULES = (
    *_embedding("vid_embd", "video_embedding"),
    *_embedding("txt_embd", "text_embedding"),
    *_blocks("txt_stem", "text_stem"),
    *_blocks("vid_stem", "video_stem"),
    *_blocks("branch", "pyramid"),
    *_norm("neck.fpn_norms.{n}", "neck_norm_{n}"),
    *_head("cls_head", "cls_head", "class_head"),
    *_head("reg_head", "offset_head", "offset_head"),
    Rule("reg_head.scale.{n}.scale", "params/level_scale_{n}"),
)


def state_dict(source: Any, *, average: bool = False) -> dict[str, np.ndarray]:
    """Return the state dict of a loaded `epoch_NNN.pth.tar` or of a bare state dict, without the prefix `module.`.

    Args:
      source: Content of the file.
      average: If true, the running average of the parameters is returned instead of the parameters.

    Raises:
      ConversionError: If the file holds something else.
    """
    key = "state_dict_ema" if average else "state_dict"
    content = source.get(key, None if average else source) if isinstance(source, Mapping) else None
    if not isinstance(content, Mapping):
        raise ConversionError(f"not a GroundNLQ checkpoint: it has no {key!r}")
    content = strip_prefix(content, "module.")
    if FIRST not in content:
        raise ConversionError(
            f"not a GroundNLQ checkpoint: it has no {FIRST!r} (its first name is {next(iter(content), None)!r})"
        )
    return content


def model_options(source: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the config keys that a state dict decides, by section: sizes, numbers of blocks, and norms."""

    def count(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in source if name.startswith(prefix)})

    crossed = {name.split(".")[2] for name in source if name.startswith("backbone.branch.") and ".cross_attn." in name}
    branches = count("backbone.branch.")
    options = {
        "dim": source[FIRST].shape[0],
        "head_dim": source["cls_head.cls_head.conv.weight"].shape[1],
        "embedding_layers": count("backbone.vid_embd."),
        "text_blocks": count("backbone.txt_stem."),
        "stem_blocks": count("backbone.vid_stem."),
        "cross_blocks": len(crossed),
        "plain_blocks": branches - len(crossed),
        "embedding_kernel": source[FIRST].shape[2],
        "embedding_norm": "backbone.vid_embd_norm.0.weight" in source,
        "neck_norm": "neck.fpn_norms.0.weight" in source,
        "head_kernel": source["cls_head.cls_head.conv.weight"].shape[2],
        "head_layers": 1 + count("cls_head.head."),
        "head_norm": "cls_head.norm.0.weight" in source,
        "classes": source["cls_head.cls_head.conv.weight"].shape[0],
        "video_dim": source[FIRST].shape[1],
        "text_dim": source["backbone.txt_embd.0.conv.weight"].shape[1],
    }
    return {"model": options}


def to_variables(source: Mapping[str, np.ndarray], expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Convert a state dict to variables; raises ConversionError for names or shapes that do not fit `expected`."""
    return convert(source, RULES, expected)


def file_content(
    arrays: Mapping[str, np.ndarray], epoch: int, *, average: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """What an `epoch_NNN.pth.tar` holds, without the states of the optimiser and the schedule."""
    return {"epoch": epoch, "state_dict": dict(arrays)} | ({"state_dict_ema": dict(average)} if average else {})


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables to a state dict with the reference's names."""
    return invert(variables, RULES)
