"""Conversion of action detectors of open-mmlab/mmaction2, releases 0.x and 1.x, whose names are the same."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.interop.released import Released, ReleasedData
from vlm_jax.interop.rules import CONV3D, LINEAR, ConversionError, Rule, Transform, convert, invert, state_dict_of
from vlm_jax.models.resnet import STEM_FEATURES

_ORIGIN = "open-mmlab/mmaction2"
_OLD = "https://download.openmmlab.com/mmaction"
_NEW = f"{_OLD}/v1.0"


def _released(folder: str, name: str, stamp: str, **options: Any) -> Released:
    return Released(f"{folder}/{name}/{name}_{stamp}.pth", _ORIGIN, options=options)


def _v1(kind: str, name: str, stamp: str, **options: Any) -> Released:
    return _released(f"{_NEW}/{kind}", name, stamp, **options)


def _v0(name: str, stamp: str, **options: Any) -> Released:
    folder = "lfb" if name.startswith("lfb") else "ava"
    full = f"{name}_pretrained_{'slowonly_' * (folder == 'lfb')}r50_4x16x1_20e_ava_rgb"
    return _released(f"{_OLD}/detection/{folder}", full, stamp, **{"clips.frame_shift": 0, **options})


# The detector that makes banks for a model, which its file does not name.
_BANK = {"bank.source.checkpoint": "released:lfb_baseline"}
_BANK_V0 = {"bank.source.checkpoint": "released:lfb_baseline_v0"}
_RECIPE = "kinetics400-pretrained-r50_8xb12-4x16x1-20e_ava21-rgb"
RELEASED = {
    "lfb_nl": _v1("detection/lfb", f"slowonly-lfb-nl_{_RECIPE}", "20220906-4c5b9f25", **_BANK),
    "lfb_max": _v1("detection/lfb", f"slowonly-lfb-max_{_RECIPE}", "20220906-4963135b", **_BANK),
    "lfb_baseline": _v1("detection/slowonly", f"slowonly_{_RECIPE.replace('12', '16')}", "20220906-953ef5fe"),
    "slowonly_kinetics": _v1(
        "recognition/slowonly",
        "slowonly_imagenet-pretrained-r50_8xb16-4x16x1-steplr-150e_kinetics400-rgb",
        "20220901-e7b65fad",
    ),
    "lfb_nl_v0": _v0("lfb_nl_kinetics", "20210224-2ae136d9", **_BANK_V0),
    "lfb_avg_v0": _v0("lfb_avg_kinetics", "20210301-19c330b7", **_BANK_V0, **{"model.operator": "avg"}),
    "lfb_max_v0": _v0("lfb_max_kinetics", "20210301-37efcd15", **_BANK_V0),
    "lfb_baseline_v0": _v0("slowonly_kinetics", "20201217-40061d5f"),
    "slowonly_kinetics_v0": _released(
        f"{_OLD}/recognition/slowonly", "slowonly_r50_4x16x1_256e_kinetics400_rgb", "20200704-a69556c6"
    ),
}
"""Published checkpoints by name; `_v0` are those of releases 0.x."""
RELEASED_DATA = {
    "lfb_banks": ReleasedData(
        "feature banks of AVA's training and validation videos, float32 (3.3 GB) and float16 (1.65 GB)",
        _ORIGIN,
        {
            f"AVA_train_val_{kind}_lfb.rar": f"{_OLD}/detection/lfb/AVA_train_val_{kind}_lfb.rar"
            for kind in ("float32", "float16")
        },
    ),
    "ava_proposals": ReleasedData(
        "boxes of people in AVA's keyframes",
        _ORIGIN,
        {
            f"ava_dense_proposals_{split}.FAIR.recall_93.9.pkl": f"{_OLD}/dataset/ava/"
            f"ava_dense_proposals_{split}.FAIR.recall_93.9.pkl"
            for split in ("train", "val", "test")
        },
    ),
}
"""Published data by name."""

STEM = "backbone.conv1.conv.weight"
HEAD = "roi_head.bbox_head.fc_cls"
FBO = "roi_head.shared_head.fbo"
BANK = f"{FBO}.lt_feat_conv.weight"
POINT = Transform(lambda array: array.reshape(array.shape[:2]).T, lambda array: array.T[..., None, None, None])
"""[O, I, 1, 1, 1] <-> [I, O]"""
CHANNELS = Transform(lambda array: array.reshape(-1), lambda array: array.reshape(-1, 1, 1, 1))
"""[C, 1, 1, 1] <-> [C]"""

RULES = (
    Rule("backbone.{unit*}.conv.weight", "params/backbone/{unit*}/conv/kernel", CONV3D),
    Rule("backbone.{unit*}.bn.weight", "params/backbone/{unit*}/bn/scale"),
    Rule("backbone.{unit*}.bn.bias", "params/backbone/{unit*}/bn/bias"),
    Rule("backbone.{unit*}.bn.running_mean", "batch_stats/backbone/{unit*}/bn/mean"),
    Rule("backbone.{unit*}.bn.running_var", "batch_stats/backbone/{unit*}/bn/var"),
    Rule.dropped(
        "backbone.{unit*}.bn.num_batches_tracked", like="batch_stats/backbone/{unit*}/bn/mean", value=np.int64(0)
    ),
    Rule(f"{HEAD}.0.weight", "params/classifier/hidden/kernel", LINEAR),
    Rule(f"{HEAD}.0.bias", "params/classifier/hidden/bias"),
    Rule(f"{HEAD}.weight", "params/classifier/fc_cls/kernel", LINEAR),
    Rule(f"{HEAD}.bias", "params/classifier/fc_cls/bias"),
    Rule(f"{FBO}.{{layer}}.weight", "params/fbo/{layer}/kernel", POINT),
    Rule(f"{FBO}.{{layer}}.bias", "params/fbo/{layer}/bias"),
    Rule(f"{FBO}.{{layer}}.ln.weight", "params/fbo/{layer}/ln/scale", CHANNELS),
    Rule(f"{FBO}.{{layer}}.ln.bias", "params/fbo/{layer}/ln/bias", CHANNELS),
    Rule(f"{FBO}.{{layer}}.{{part}}.conv.weight", "params/fbo/{layer}/{part}/kernel", POINT),
    Rule(f"{FBO}.{{layer}}.{{part}}.conv.bias", "params/fbo/{layer}/{part}/bias"),
    # The classifier of a Kinetics recogniser, of which only the backbone is taken.
    Rule.dropped("cls_head.fc_cls.{kind}"),
)
MLP_LAST = f"{HEAD}.2."


def state_dict(source: Any) -> dict[str, np.ndarray]:
    """Return the state dict of a loaded checkpoint of a detector, or of a SlowOnly recogniser.

    Raises:
      ConversionError: If the file holds something else.
    """
    return state_dict_of(source, "SlowOnly", (STEM,))


def model_options(source: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the config keys that a state dict decides, by section: sizes, operator, classes.

    The files of avg and max are alike; 'max' is assumed. A recogniser gives a model without a bank.

    Raises:
      ConversionError: If the classifier is that of no operator.
    """
    blocks = tuple(
        len({name.split(".")[2] for name in source if name.startswith(f"backbone.layer{stage}.")})
        for stage in range(1, 5)
    )
    features = source[f"backbone.layer4.{blocks[3] - 1}.conv3.conv.weight"].shape[0]
    last = f"{HEAD}.2.weight" if f"{HEAD}.2.weight" in source else f"{HEAD}.weight"
    model = {"blocks": blocks, "width": source[STEM].shape[0] / STEM_FEATURES, "mlp_head": ".2." in last}
    if last not in source:
        return {"model": model | {"operator": "none"}}
    classes, width = source[last].shape
    if BANK in source:
        latent, dim = source[BANK].shape[:2]
        layers = {found[1] for name in source if (found := re.match(rf"{FBO}\.non_local_layer_(\d+)\.", name))}
        model |= {"operator": "non_local", "latent_dim": latent, "bank_dim": dim, "non_local_layers": len(layers)}
        model["pre_activate_with_norm"] = f"{FBO}.non_local_layer_1.ln.weight" in source
    elif width in (features, 2 * features):
        model |= {"operator": "none" if width == features else "max", "bank_dim": features}
    else:
        raise ConversionError(f"{last}: {width} inputs, expected {features} (no bank) or {2 * features} (avg, max)")
    return {"model": model, "data": {"num_classes": classes}}


def to_variables(source: Mapping[str, np.ndarray], expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Convert a state dict to variables.

    Args:
      source: State dict from `state_dict`.
      expected: Shapes of the variables, which must match exactly.

    Raises:
      ConversionError: If names are unused, missing, or of another shape; it lists them.
    """
    if expected is not None and not any(name.startswith(HEAD) for name in source):
        raise ConversionError(
            f"no {HEAD}: a recogniser, not a detector; config.init_from takes its backbone, with the heads in "
            "config.init_fresh"
        )
    # The last layer of a classifier with two is called as that of a classifier with one.
    names = {name: name.replace(MLP_LAST, f"{HEAD}.") for name in source}
    return convert({names[name]: array for name, array in source.items()}, RULES, expected)


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables to a state dict with the reference's names."""
    made = invert(variables, RULES)
    if f"{HEAD}.0.weight" in made:
        for kind in ("weight", "bias"):
            made[f"{MLP_LAST}{kind}"] = made.pop(f"{HEAD}.{kind}")
    return made


def file_content(arrays: Mapping[str, np.ndarray], epoch: int) -> dict[str, Any]:
    """Return what a file of the reference holds beside the arrays."""
    return {"meta": {"epoch": epoch}, "state_dict": dict(arrays)}
