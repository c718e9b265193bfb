"""Conversion of checkpoints of alipay/Ant-Multi-Modal-Framework, prj/snps3_vtp, and of the files it starts from.

These are bert-base-uncased, torchvision's ResNet-50, PVT v2-b2 and Video Swin. Each gives a part of the variables, so
that a run takes them together (`config.init_from`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.interop.released import Released
from vlm_jax.interop.rules import IDENTITY, LINEAR, ConversionError, Rule, Transform, convert, invert, strip_prefix

_ORIGIN = "alipay/Ant-Multi-Modal-Framework"
RELEASED = {
    "bert_base_uncased": Released(
        "https://huggingface.co/google-bert/bert-base-uncased/resolve/main/pytorch_model.bin",
        "google-bert/bert-base-uncased",
    ),
    "resnet50_imagenet": Released("https://download.pytorch.org/models/resnet50-0676ba61.pth", "pytorch/vision"),
    "pvt_v2_b2": Released("https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b2.pth", "whai362/PVT"),
    "video_swin_snps3": Released("ckpt_video-swin.pt", _ORIGIN),
}
"""Published files by name. The weights of SNP-S3 itself are on the pages of its repository, under no fixed URL."""

VIDEO_CONV = Transform(lambda array: array.transpose(2, 3, 4, 1, 0), lambda array: array.transpose(4, 3, 0, 1, 2))
"""[O, I, T, H, W] <-> [T, H, W, I, O]"""
FRAME_CONV = Transform(lambda array: array.transpose(2, 3, 1, 0)[None], lambda array: array[0].transpose(3, 2, 0, 1))
"""[O, I, H, W] <-> [1, H, W, I, O]"""
POINT = Transform(lambda array: array[..., 0, 0].T, lambda array: array.T[..., None, None])
"""[O, I, 1, 1] <-> [I, O]"""
DEPTHWISE = Transform(lambda array: array[:, 0].transpose(1, 2, 0), lambda array: array.transpose(2, 0, 1)[:, None])
"""[C, 1, H, W] <-> [H, W, C]"""
QUEUE = LINEAR
"""[D, K] <-> [K, D]"""
SCALAR = Transform(lambda array: array.reshape(()), lambda array: array.reshape(1))
"""[1] <-> []"""

Row = tuple[str, str | None, Transform]
"""Name in a checkpoint, path of ours below the network (None: not used), and change of layout."""


def linear(source: str, target: str, transform: Transform = LINEAR) -> tuple[Row, ...]:
    """Return the rows of a layer with weight and bias."""
    return (f"{source}.weight", f"params/{target}/kernel", transform), (
        f"{source}.bias",
        f"params/{target}/bias",
        IDENTITY,
    )


def norm(source: str, target: str) -> tuple[Row, ...]:
    """Return the rows of a layer norm."""
    names = {"weight": "scale", "bias": "bias"}
    return tuple((f"{source}.{theirs}", f"params/{target}/{ours}", IDENTITY) for theirs, ours in names.items())


def frozen_norm(source: str, target: str) -> tuple[Row, ...]:
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    rows = tuple((f"{source}.{theirs}", f"frozen/{target}/bn/{ours}", IDENTITY) for theirs, ours in names.items())
    return (*rows, (f"{source}.num_batches_tracked", None, IDENTITY))


LAYER = "encoder.layer.{n}"
BERT = (
    ("embeddings.word_embeddings.weight", "params/word_embeddings", IDENTITY),
    ("embeddings.position_embeddings.weight", "params/position_embeddings", IDENTITY),
    ("embeddings.token_type_embeddings.weight", "params/type_embeddings", IDENTITY),
    ("embeddings.position_ids", None, IDENTITY),
    *norm("embeddings.LayerNorm", "embeddings_norm"),
    *linear(f"{LAYER}.attention.output.dense", "layer_{n}/attention_output"),
    *norm(f"{LAYER}.attention.output.LayerNorm", "layer_{n}/attention_norm"),
    *linear(f"{LAYER}.intermediate.dense", "layer_{n}/intermediate"),
    *linear(f"{LAYER}.output.dense", "layer_{n}/output"),
    *norm(f"{LAYER}.output.LayerNorm", "layer_{n}/output_norm"),
    *linear(f"{LAYER}.attention.self.{{part}}", "layer_{n}/{part}"),
    *linear("pooler.dense", "pooler/dense"),
)
"""Rows of BERT. The first that fits is used, both ways."""
BLOCK = "layers.{stage}.blocks.{n}"
SWIN = (
    *linear("patch_embed.proj", "patch_embed", VIDEO_CONV),
    *norm("patch_embed.norm", "patch_embed_norm"),
    *norm(f"{BLOCK}.norm1", "stage{stage}_block{n}/norm1"),
    *norm(f"{BLOCK}.norm2", "stage{stage}_block{n}/norm2"),
    *linear(f"{BLOCK}.mlp.{{part}}", "stage{stage}_block{n}/{part}"),
    *linear(f"{BLOCK}.attn.{{part}}", "stage{stage}_block{n}/attn/{part}"),
    (
        f"{BLOCK}.attn.relative_position_bias_table",
        "params/stage{stage}_block{n}/attn/relative_position_bias_table",
        IDENTITY,
    ),
    (f"{BLOCK}.attn.relative_position_index", None, IDENTITY),
    *norm("layers.{stage}.downsample.norm", "stage{stage}_downsample/norm"),
    ("layers.{stage}.downsample.reduction.weight", "params/stage{stage}_downsample/reduction/kernel", LINEAR),
    *norm("norm", "norm"),
)
"""Rows of Video Swin."""
PVT = (
    *linear("patch_embed{stage}.proj", "patch_embed{stage}/proj", FRAME_CONV),
    *norm("patch_embed{stage}.norm", "patch_embed{stage}/norm"),
    *norm("block{stage}.{n}.attn.norm", "block{stage}_{n}/attn/norm"),
    *linear("block{stage}.{n}.attn.sr", "block{stage}_{n}/attn/sr", FRAME_CONV),
    *linear("block{stage}.{n}.attn.{part}", "block{stage}_{n}/attn/{part}"),
    *norm("block{stage}.{n}.norm1", "block{stage}_{n}/norm1"),
    *norm("block{stage}.{n}.norm2", "block{stage}_{n}/norm2"),
    ("block{stage}.{n}.mlp.dwconv.dwconv.weight", "params/block{stage}_{n}/mlp/dwconv_kernel", DEPTHWISE),
    ("block{stage}.{n}.mlp.dwconv.dwconv.bias", "params/block{stage}_{n}/mlp/dwconv_bias", IDENTITY),
    *linear("block{stage}.{n}.mlp.{part}", "block{stage}_{n}/mlp/{part}"),
    *norm("norm{stage}", "norm{stage}"),
    ("head.{leaf}", None, IDENTITY),
)
"""Rows of PVT; its classifier is not used."""
UNIT = "layer{stage}/{n}/conv{part}"
SHORT = "layer{stage}/{n}/downsample"
RESNET = (
    ("conv1.weight", "params/conv1/conv/kernel", FRAME_CONV),
    *frozen_norm("bn1", "conv1"),
    ("layer{stage}.{n}.conv{part}.weight", f"params/{UNIT}/conv/kernel", FRAME_CONV),
    *frozen_norm("layer{stage}.{n}.bn{part}", UNIT),
    ("layer{stage}.{n}.downsample.0.weight", f"params/{SHORT}/conv/kernel", FRAME_CONV),
    *frozen_norm("layer{stage}.{n}.downsample.1", SHORT),
    ("fc.{leaf}", None, IDENTITY),
)
"""Rows of ResNet; its classifier is not used."""
NETWORK = "visual/network"
VISUAL = (
    *linear("img_fc.{n}", "visual/img_fc_{n}"),
    *linear("output_proj", "visual/output_proj", POINT),
    ("img_proj", None, IDENTITY),  # the reference's class multiplies by this array, uninitialised, and fails
)
MASKED_WORDS = "model.mlm_head.{kind}.cls.predictions"
HEADS = (
    ("clf", "classifier"),
    ("itm_head.cls.seq_relationship", "pair_head"),
)
ALIASES = re.compile(
    r"module\.(text_encoder\.module|cross_embeddings|cross_encoder)\.|moco_utils\.(img|txt)_encoder_q\.|"
    r"cls\.predictions\.decoder\."
)
"""Names that share a tensor with another name."""


def below(prefix: str, rows: Sequence[Row], path: str, momentum: bool = False) -> list[Rule]:
    """Return the rules of a network at a prefix of the names and below a path of ours."""
    rules = []
    for source, target, transform in rows:
        if target is None:
            rules.append(Rule.dropped(f"{prefix}{source}"))
            continue
        collection, _, rest = target.partition("/")
        place = f"{path}/{rest}" if path else rest
        if momentum and collection == "frozen":
            rules.append(Rule.dropped(f"{prefix}{source}"))
            continue
        top = "momentum/encoders" if momentum else collection
        rules.append(Rule(f"{prefix}{source}", f"{top}/{place}", transform))
    return rules


def rules_of(root: str, network: str) -> list[Rule]:
    """Return the rules of a model.

    Args:
      root: Prefix of the encoders' names: 'model.model.' in pre-training, 'model.' in other models.
      network: Name of the visual network, a key of `NETWORKS`.
    """
    prefix, rows = NETWORKS[network]
    rules = []
    for image, text, momentum in (
        (f"{root}module.img_encoder.", f"{root}module.text_encoder.", False),
        (f"{root}moco_utils.img_encoder_k.", f"{root}moco_utils.txt_encoder_k.", True),
    ):
        rules += below(f"{image}{prefix}.", rows, NETWORK, momentum)
        rules += below(image, VISUAL, "", momentum)
        rules += below(text, BERT, "bert", momentum)
    rules += below(f"{root}module.", linear("cross_pooler.dense", "bert/cross_pooler/dense"), "")
    rules += below(
        f"{root}similarity_dense.", (*linear("0", "similarity/hidden"), *linear("2", "similarity/score")), ""
    )
    for source, target in HEADS:
        rules += below("model.", linear(source, target), "")
    for kind, target in (("transformer_mlm", "word_head"), ("text_encoder_mlm", "text_word_head")):
        name = MASKED_WORDS.format(kind=kind)
        rows = (
            *linear(f"{name}.transform.dense", f"{target}/dense"),
            *norm(f"{name}.transform.LayerNorm", f"{target}/norm"),
            (f"{name}.bias", f"params/{target}/bias", IDENTITY),
        )
        rules += below("", rows, "")
    for theirs, ours in (("img", "clip"), ("txt", "text")):
        rules.append(Rule(f"{root}moco_utils.{theirs}_queue", f"momentum/{ours}_queue", QUEUE))
        rules.append(Rule(f"{root}moco_utils.{theirs}_queue_ptr", f"momentum/{ours}_pointer", SCALAR))
    return rules


NETWORKS = {"swin": ("swin", SWIN), "pvt": ("model", PVT), "resnet": ("model", RESNET)}
"""Prefix in the visual encoder and rows of each network."""
SIGNS = {
    "swin": "swin.patch_embed.proj.weight",
    "pvt": "model.patch_embed1.proj.weight",
    "resnet": "model.conv1.weight",
}
"""Name by which the network of a visual encoder is known."""
PARTS = {
    "bert": ("embeddings.word_embeddings.weight", BERT, "bert"),
    "swin": ("layers.0.blocks.0.attn.relative_position_bias_table", SWIN, NETWORK),
    "pvt": ("patch_embed1.proj.weight", PVT, NETWORK),
    "resnet": ("layer4.2.conv3.weight", RESNET, NETWORK),
}
"""Files that a run starts from: name by which each is known, its rows and our path."""
PREFIXES = ("module.", "backbone.", "bert.", "swin.", "img_encoder.")
"""Prefixes of names in such files."""


def state_dict(source: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a loaded file by name: a checkpoint of SNP-S3, or one of the files that it starts from.

    Names that share a tensor with another name are left out.

    Raises:
      ConversionError: If the file holds something else.
    """
    content = source
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"not an SNP-S3 checkpoint: expected a state dict, found a {type(content).__name__}")
    found = strip_prefix(content, "module.") if all(name.startswith("module.") for name in content) else dict(content)
    found = {name: array for name, array in found.items() if not ALIASES.search(name)}
    if root_of(found) is None and part_of(found) is None:
        raise ConversionError(
            "not an SNP-S3 checkpoint, nor one of BERT, ResNet-50, PVT v2 or Video Swin (its first name is "
            f"{next(iter(content))!r})"
        )
    return found


def root_of(source: Mapping[str, Any]) -> str | None:
    """Return the prefix of the encoders' names in a checkpoint of SNP-S3; None for another file."""
    for root in ("model.model.", "model."):
        if f"{root}module.text_encoder.embeddings.word_embeddings.weight" in source:
            return root
    return None


def part_of(source: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return which network a file holds, a key of `PARTS`, and the prefix of its names; None if it is none."""
    for kind, (sign, _, _) in PARTS.items():
        for name in source:
            if name.endswith(sign):
                return kind, name.removesuffix(sign)
    return None


def network_of(source: Mapping[str, Any], root: str) -> str:
    """Return the name of the visual network of an SNP-S3 checkpoint.

    Raises:
      ConversionError: If there is none.
    """
    for network, sign in SIGNS.items():
        if f"{root}module.img_encoder.{sign}" in source:
            return network
    raise ConversionError(f"no {root}module.img_encoder of Video Swin, PVT v2 or ResNet-50")


def model_options(source: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the config keys that a state dict decides, by section: networks, sizes, head and answers.

    A file of one network decides none.
    """
    root = root_of(source)
    if root is None:
        return {}
    text = f"{root}module.text_encoder."
    words, features = source[f"{text}embeddings.word_embeddings.weight"].shape
    layers = {name.removeprefix(text).split(".")[2] for name in source if name.startswith(f"{text}encoder.layer.")}
    network = network_of(source, root)
    model: dict[str, Any] = {"features": features, "layers": len(layers)}
    model["hidden"] = source[f"{text}encoder.layer.0.intermediate.dense.weight"].shape[0]
    model["positions"] = source[f"{text}embeddings.position_embeddings.weight"].shape[0]
    model["visual"] = {"name": network, **_sizes(source, f"{root}module.img_encoder.", network)}
    head = "retrieval"
    if "model.clf.weight" in source:
        head, model["num_answers"] = "question_answering", source["model.clf.weight"].shape[0]
    elif "model.itm_head.cls.seq_relationship.weight" in source:
        head = "pretraining"
    return {"": {"head": head}, "model": model, "text": {"vocabulary_size": words}}


def _sizes(source: Mapping[str, np.ndarray], prefix: str, network: str) -> dict[str, Any]:
    """Return the sizes of a visual network."""

    def depths(pattern: str, first: int) -> tuple[int, ...]:
        found: dict[int, set[str]] = {}
        for name in source:
            if match := re.match(re.escape(prefix) + pattern, name):
                found.setdefault(int(match[1]), set()).add(match[2])
        return tuple(len(found[stage]) for stage in range(first, first + len(found)))

    if network == "swin":
        tables = "swin.layers.{}.blocks.0.attn.relative_position_bias_table"
        blocks = depths(r"swin\.layers\.(\d+)\.blocks\.(\d+)\.", 0)
        heads = tuple(source[prefix + tables.format(stage)].shape[1] for stage in range(len(blocks)))
        return {"features": source[f"{prefix}swin.patch_embed.proj.weight"].shape[0], "depths": blocks, "heads": heads}
    if network == "pvt":
        blocks = depths(r"model\.block(\d+)\.(\d+)\.", 1)
        widths = tuple(source[f"{prefix}model.norm{stage}.weight"].shape[0] for stage in range(1, len(blocks) + 1))
        return {"depths": blocks, "widths": widths}
    return {"blocks": depths(r"model\.layer(\d+)\.(\d+)\.", 1)}


def to_variables(source: Mapping[str, np.ndarray], expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Convert a state dict to variables; a file of one network gives those of this network alone.

    Key encoders and queues are converted unless `expected` has none. BERT's pooler is also taken as the pooler of
    texts with clips.

    Args:
      source: State dict from `state_dict`.
      expected: Shapes of the variables, which must match exactly.

    Raises:
      ConversionError: If names are unused, missing, or of another shape; it lists them.
    """
    root = root_of(source)
    if root is None and expected is not None:
        raise ConversionError(
            f"a file of {part_of(source)[0]} alone, which gives no whole model; config.init_from takes it, with the "
            "other parts in config.init_fresh"
        )
    if root is None:
        return _part_to_variables(source)
    if expected is not None and "momentum" not in expected:
        source = {name: array for name, array in source.items() if not name.startswith(f"{root}moco_utils.")}
    return convert(source, rules_of(root, network_of(source, root)), expected)


def _part_to_variables(source: Mapping[str, np.ndarray]) -> dict[str, Any]:
    kind, prefix = part_of(source)
    _, rows, path = PARTS[kind]
    own = {name: array for name, array in source.items() if name.startswith(prefix)}
    if kind == "bert":
        # The head for masked words and for pairs of sentences are not taken; old files call the norms' arrays so.
        own = {name: array for name, array in own.items() if not name.removeprefix(prefix).startswith("cls.")}
        own = {name.replace(".gamma", ".weight").replace(".beta", ".bias"): array for name, array in own.items()}
    found = convert(own, below(prefix, rows, path))
    if kind == "bert" and "pooler" in found["params"]["bert"]:
        found["params"]["bert"]["cross_pooler"] = found["params"]["bert"]["pooler"]
    return found


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Convert variables to a state dict with the reference's names, those that share a tensor included."""
    params = variables["params"]
    root = "model.model." if "pair_head" in params else "model."
    names = params["visual"]["network"]
    network = "swin" if "patch_embed" in names else "pvt" if "patch_embed1" in names else "resnet"
    made = invert(variables, rules_of(root, network))
    words = f"{root}module.text_encoder.embeddings.word_embeddings.weight"
    for kind in ("transformer_mlm", "text_encoder_mlm"):
        name = MASKED_WORDS.format(kind=kind)
        if f"{name}.bias" in made:
            made |= {f"{name}.decoder.weight": made[words], f"{name}.decoder.bias": made[f"{name}.bias"]}
    return made


def file_content(arrays: Mapping[str, np.ndarray], epoch: int) -> dict[str, Any]:
    """Return what a file of the reference holds beside the arrays."""
    return {"model": dict(arrays), "current_epoch": epoch}
