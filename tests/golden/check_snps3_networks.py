"""Checkers of the golden cases of snps3 that run one network, and the names of the networks' checkpoints."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from precision import precise, wide

from vlm_jax.interop.rules import convert, invert
from vlm_jax.models.bert import Bert
from vlm_jax.models.pvt import PyramidTransformer
from vlm_jax.models.resnet import ResNet
from vlm_jax.models.swin3d import VideoSwin, relative_positions, window_regions
from vlm_jax.systems.snps3.interop import BERT, PVT, RESNET, SWIN, below, linear


def rules_of(networks):
    """Return the rules of networks, given as rows by prefix in the checkpoint."""
    return [rule for prefix, rows in networks.items() for rule in below(prefix, rows, "")]


def variables_of(case, networks, make, precision):
    """Return the variables of a case's weights, after checks that they are complete and go back to the same names.

    Args:
      case: Golden case.
      networks: Rows by prefix in the checkpoint; what has no such prefix belongs to other parts of the model.
      make: Function of a key that initialises the network.
      precision: 'float32' or 'float64'.
    """
    rules = rules_of(networks)
    weights = {name: array for name, array in case.weights().items() if name.startswith(tuple(networks))}
    found = convert(weights, rules, jax.eval_shape(make, jax.random.key(0)))
    back = invert(found, rules)
    assert back.keys() == {name for name in weights if ".model.head." not in name}
    for name, array in back.items():
        np.testing.assert_array_equal(array, weights[name])
    return wide(found, precision)


def check(case, found):
    """Compare arrays with those of a case, by the tolerance of its manifest; integers and booleans are exact."""
    assert found, "nothing to compare"
    rule = {name: case.tolerance[name] for name in ("rtol", "atol")}
    for name, ours in found.items():
        ours, reference = np.asarray(ours), case[name]
        assert ours.shape == reference.shape, f"{name}: shape {ours.shape}, expected {reference.shape}"
        if reference.dtype.kind in "bi":
            np.testing.assert_array_equal(ours, reference, err_msg=name)
        else:
            np.testing.assert_allclose(ours, reference, err_msg=name, **rule)


def bert_of(case, networks, precision, vocabulary_size, num_layers):
    """Return the case's BERT without dropout and its variables, with the cross pooler if there are rows for it."""
    model = Bert(vocabulary_size, 0, 102, num_layers=num_layers, dropout=0.0)
    ids, mask = jnp.zeros((1, 2), int), jnp.ones((1, 2), bool)

    def text(model):
        return model.text(ids, mask)

    def both(model):
        return text(model), model.cross(ids, mask, jnp.zeros((1, 1, model.features)))

    method = text if len(networks) == 1 else both
    return model, variables_of(case, networks, lambda key: model.init(key, method=method), precision)


def sizes_of(case):
    """Return vocabulary size and number of layers of a case of the text or the cross encoder."""
    return case.config["vocab_size"], case.config["num_hidden_layers"]


def bert_with_cross_pooler(root):
    """Return the rows of BERT and the cross pooler by prefix."""
    return {f"{root}text_encoder.": BERT, f"{root}cross_pooler.": linear("dense", "cross_pooler/dense")}


@precise
def check_text_encoder(case, precision):
    model, variables = bert_of(case, {"text_encoder.": BERT}, precision, *sizes_of(case))
    ids, mask = case["in/input_ids"], case["in/input_mask"].astype(bool)
    text = model.apply(variables, ids, mask, method="text")
    found = {
        "out/embeddings": model.apply(variables, ids, method="embed_text"),
        "out/sequence_output": text.sequence,
        "out/pooled_output": text.pooled,
        "out/pooled_output_l2norm": text.embedding,
        "out/words_importance": text.importance,
    }
    assert found.keys() == {name for name in case.arrays if name.startswith("out/")}
    check(case, found)


@precise
def check_cross_encoder_small(case, precision):
    """Compare all but the logit of a pair, which belongs to the whole model."""
    root = "model.model.module."
    model, variables = bert_of(case, bert_with_cross_pooler(root), precision, *sizes_of(case))
    ids, mask = case["in/input_ids"], case["in/input_mask"].astype(bool)
    visual = case["in/visual_tokens"].astype(precision)
    cross = model.apply(variables, ids, mask, visual, method="cross")
    found = {
        "out/cap_embed": model.apply(variables, ids, method="embed_text"),
        "out/visual_embed": model.apply(variables, visual, method="embed_visual"),
        "out/cap_seq_output": cross.text,
        "out/visual_seq_output": cross.visual,
        "out/pooled_output": cross.pooled,
    }
    assert case["out/visual_mask"].all()
    check(case, found)


def channels_last(video):
    """Return `[B, T, C, H, W]` with the channels at the end."""
    return np.moveaxis(video, 2, -1)


def projected(case, maps):
    """Return maps `[B, T, H, W, C]` after the reference's last convolution of one pixel, `[B, T, 768, H, W]`."""
    weights = case.weights()
    kernel = weights["img_encoder.output_proj.weight"][:, :, 0, 0]
    out = np.asarray(maps, np.float64) @ kernel.T + weights["img_encoder.output_proj.bias"]
    return np.moveaxis(out, -1, 2)


def swin_of(case, precision, root="", **sizes):
    """Return a Video Swin and its variables."""
    model = VideoSwin(**sizes)
    video = jnp.zeros((1, 1, 32, 32, 3))
    networks = {f"{root}img_encoder.swin.": SWIN}
    return model, variables_of(case, networks, lambda key: model.init(key, video), precision)


def configured_swin(case, precision):
    """Return the Video Swin of a case that gives its sizes, and its variables."""
    wanted = case.config
    sizes = {name: tuple(wanted[theirs]) for name, theirs in (("depths", "depths"), ("heads", "num_heads"))}
    return swin_of(case, precision, features=wanted["embed_dim"], window=tuple(wanted["window"]), **sizes)


@precise
def check_swin_real(case, precision):
    model, variables = configured_swin(case, precision)
    maps = model.apply(variables, channels_last(case["in/image_data"]).astype(precision))
    check(case, {"out/grid_feature": np.moveaxis(maps, -1, 2)})


@precise
def check_swin_odd(case, precision):
    model, variables = configured_swin(case, precision)
    video = np.moveaxis(case["in/video_ncdhw"], 1, -1).astype(precision)
    maps, states = model.apply(
        variables, video, capture_intermediates=lambda module, _: module.name == "patch_embed_norm"
    )
    embedded = states["intermediates"]["patch_embed_norm"]["__call__"][0]
    check(case, {"out/feature_ncdhw": np.moveaxis(maps, -1, 1), "out/patch_embed_mean": embedded.mean(-1)})


@precise
def check_swin_mask_index(case, precision):
    size, window, shift = (tuple(case.config[name]) for name in ("D,H,W padded", "window", "shift"))
    regions = np.asarray(window_regions(size, window, shift))
    apart = regions[:, :, None] != regions[:, None, :]
    positions = apart.shape[-1]
    index = np.asarray(relative_positions(window, positions))
    found = {
        "out/mask_nonzero_per_window": apart.sum((1, 2)),
        "out/mask_row_checksum": (apart * np.arange(1, positions + 1.0)).sum(-1),
        "out/relative_index_first_rows": index[:4],
        "out/relative_index_n147": np.asarray(relative_positions(window, 147))[::49],
    }
    assert found.keys() == case.arrays.keys()
    check(case, found)


def pvt_of(case, precision):
    """Return the case's PVT and its variables; the number of blocks is that of its names."""
    names = (re.match(r"img_encoder\.model\.block(\d)\.(\d+)\.", entry["name"]) for entry in case.manifest["params"])
    depths = {}
    for stage, block in (found.groups() for found in names if found):
        depths[stage] = max(depths.get(stage, 0), int(block) + 1)
    model = PyramidTransformer(depths=tuple(depths[stage] for stage in sorted(depths)))
    video = jnp.zeros((1, 1, 32, 32, 3))
    return model, variables_of(case, {"img_encoder.model.": PVT}, lambda key: model.init(key, video), precision)


@precise
def check_pvt_v2_b2_real(case, precision):
    model, variables = pvt_of(case, precision)
    maps = model.apply(variables, channels_last(case["in/image_data"]).astype(precision))
    check(case, {"out/grid_feature": projected(case, maps)})


@precise
def check_resnet50_real(case, precision):
    model, video = ResNet(frozen=True), channels_last(case["in/image_data"]).astype(precision)
    networks = {"img_encoder.model.": RESNET}
    variables = variables_of(case, networks, lambda key: model.init(key, jnp.zeros((1, 1, 32, 32, 3))), precision)
    maps, _ = model.apply(variables, video, train=True)
    check(case, {"out/grid_feature": projected(case, maps["layer4"])})


CHECKERS = {
    "text_encoder": check_text_encoder,
    "cross_encoder_small": check_cross_encoder_small,
    "swin_real": check_swin_real,
    "swin_odd": check_swin_odd,
    "swin_mask_index": check_swin_mask_index,
    "pvt_v2_b2_real": check_pvt_v2_b2_real,
    "resnet50_real": check_resnet50_real,
}
