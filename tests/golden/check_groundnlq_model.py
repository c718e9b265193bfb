"""Checkers of the golden cases of groundnlq that run the model forwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from check_groundnlq_ops import assert_close

from vlm_jax.systems.groundnlq import interop as names
from vlm_jax.systems.groundnlq.model import Block, CrossAttention, GroundNLQ, LayerNorm, SelfAttention, position_table


def channels_last(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def channels_first(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def build(wanted, drop_path=0.1):
    """Return the model of a case's `config.model`."""
    layers, text, stem, cross, plain = wanted["backbone_arch"]
    windows = wanted["n_mha_win_size"]
    windows = windows if isinstance(windows, list) else [windows]
    return GroundNLQ(
        dim=wanted["embd_dim"],
        head_dim=wanted["head_dim"],
        heads=wanted["n_head"],
        embedding_layers=layers,
        text_blocks=text,
        stem_blocks=stem,
        cross_blocks=cross,
        plain_blocks=plain,
        windows=tuple(max(window, 0) for window in windows),
        max_length=wanted["max_seq_len"],
        position_table=wanted["use_abs_pe"],
        relative_bias=wanted["use_rel_pe"],
        embedding_kernel=wanted["embd_kernel_size"],
        embedding_norm=wanted["embd_with_ln"],
        neck_norm=wanted["fpn_with_ln"],
        head_kernel=wanted["head_kernel_size"],
        head_layers=wanted["head_num_layers"],
        head_norm=wanted["head_with_ln"],
        classes=wanted["num_classes"],
        drop_path=drop_path,
    )


def abstract(model, wanted):
    """Return the shapes of the model's variables."""
    video = jax.ShapeDtypeStruct((1, wanted["max_seq_len"], wanted["input_vid_dim"]), jnp.float32)
    text = jax.ShapeDtypeStruct((1, 4, wanted["input_txt_dim"]), jnp.float32)
    masks = [jax.ShapeDtypeStruct(x.shape[:2], bool) for x in (video, text)]
    return jax.eval_shape(model.init, jax.random.key(0), video, masks[0], text, masks[1])


def variables_of(case, model):
    """Return the case's weights as variables. Their shapes are checked, and the options against the manifest's."""
    source = names.state_dict({"state_dict": case.weights()})
    options = names.model_options(source)["model"]
    wanted = case.config["model"]
    sizes = {"video_dim": wanted["input_vid_dim"], "text_dim": wanted["input_txt_dim"]}
    assert options == sizes | {key: getattr(model, key) for key in options if key not in sizes}
    return names.to_variables(source, abstract(model, wanted))


def padded(arrays, length):
    """Return arrays `[C, t]` as one array `[B, length, C]`, and the mask of existing positions, `[B, length]`."""
    out = np.zeros((len(arrays), length, arrays[0].shape[0]), np.float32)
    for row, array in zip(out, arrays, strict=True):
        row[: array.shape[1]] = array.T
    return out, np.arange(length) < np.array([[array.shape[1]] for array in arrays])


def batch_of(case, prefix="in/"):
    """Return the model's inputs: videos padded to `max_seq_len`, questions to the longest one."""
    numbers = range(len(case.manifest["lengths"]))
    video, mask = padded([case[f"{prefix}feats_{n}"] for n in numbers], case.config["model"]["max_seq_len"])
    text = [case[f"{prefix}query_feats_{n}"] for n in numbers]
    return {"video": video, "mask": mask} | dict(
        zip(("text", "text_mask"), padded(text, max(case.manifest["text_lengths"])), strict=True)
    )


@functools.lru_cache
def forward(model, watched=False):
    """Return the jitted model. If `watched` is true, it also returns the outputs of the blocks and of the neck."""
    if not watched:
        return jax.jit(lambda variables, batch: model.apply(variables, **batch))

    def watch(module, _):
        return isinstance(module, Block) or (isinstance(module, LayerNorm) and module.name.startswith("neck_norm"))

    return jax.jit(
        lambda variables, batch: model.apply(variables, **batch, capture_intermediates=watch, mutable=["intermediates"])
    )


def check_forward(case, precision):
    model = build(case.config["model"])
    levels, watched = forward(model, True)(variables_of(case, model), batch_of(case))
    watched = {name: calls["__call__"][0] for name, calls in watched["intermediates"].items()}
    checked = 0
    for name, reference in case.group("out/").items():
        kind, _, level = name.rpartition("_l")
        if kind == "mask":
            np.testing.assert_array_equal(levels.masks[int(level)], reference)
            continue
        if kind == "neck":
            ours = channels_first(watched[f"neck_norm_{level}"])
        elif kind:
            ours = getattr(levels, kind)[int(level)]
        else:
            ours = channels_first(watched[our_block(name.removeprefix("block/"))][0])
        assert_close(ours, reference, case.tolerance["out"], name)
        checked += 1
    assert checked > 2 * len(levels.logits)


def our_block(name):
    """Return our name of a block: `backbone.vid_stem.0` becomes `video_stem_0`."""
    _, part, number = name.split(".")
    return {"txt_stem": "text_stem", "vid_stem": "video_stem", "branch": "pyramid"}[part] + f"_{number}"


def check_attention(case, precision):
    weights = case.weights()
    x, text = channels_last(case["in/x"]), channels_last(case["in/text"])
    mask, text_mask = case["in/mask"][:, 0], case["in/text_mask"][:, 0]
    outputs = [name for name in case.group("out/") if not name.endswith("_mask")]
    assert len(outputs) == 9
    for name in outputs:
        place = {"cross": "cross_attn."}.get(name, "" if name.startswith("block") else "attn.")
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        source = {f"backbone.vid_stem.0.{place}{key}": value for key, value in own.items()}
        params = names.to_variables(source)["params"]["video_stem_0"]
        heads = case.config["heads"].get(name, case.config["heads"]["others"])
        stride = 2 if "_s2" in name else 1
        after = mask[:, ::stride]
        if name == "cross":
            module, arguments = CrossAttention(heads), (x, mask, text, text_mask)
        elif name.startswith("block"):
            crossed = name.endswith("cross")
            window = {"block_local_s2_cross": 9, "block_global_s1": 0}[name]
            rate = 0.1 if "drop_attention" in params else 0.0
            module = Block(heads, stride, window, cross=crossed, drop_path=rate)
            arguments = (x, mask, text, text_mask) if crossed else (x, mask)
        else:
            window = int(name.split("_")[1][1:]) if name.startswith("local") else 0
            module, arguments = SelfAttention(heads, stride, window, name.endswith("rel")), (x, after)
        params = params.get({"attn.": "attention", "cross_attn.": "cross_attention"}.get(place), params)
        ours = jax.jit(module.apply)({"params": params}, *arguments)
        if isinstance(ours, tuple):
            ours, after = ours
        assert_close(channels_first(ours), case[f"out/{name}"], case.tolerance["out"], name)
        np.testing.assert_array_equal(after, case[f"out/{name}_mask"][:, 0], err_msg=name)


def check_position_table(case, precision):
    wanted, out = case.config["model"], case.tolerance["out"]
    rows, dim = wanted["max_seq_len"], wanted["embd_dim"]
    assert_close(position_table(rows, dim, rows).T, case["out/pos_embd"], out)
    assert_close(position_table(rows, dim, 2 * rows).T, case["out/pos_embd_stretched"], out)
    released = position_table(2560, 384, 2560)[[0, 1, 2, 100, 1279, 2559]]
    assert_close(released.T, case["out/pos_embd_2560x384_columns"], out)
    video, text = channels_last(case["in/vid"]), channels_last(case["in/txt"])
    length = video.shape[1]
    batch = {"video": video, "mask": np.arange(length)[None] < length - 21}
    batch |= {"text": text, "text_mask": np.ones(text.shape[:2], bool)}
    model = build(wanted)
    _, watched = forward(model, True)(variables_of(case, model), batch)
    for level, block in enumerate(("video_stem_0", "pyramid_0")):
        ours = watched["intermediates"][block]["__call__"][0][0]
        assert_close(channels_first(ours), case[f"out/feats_l{level}"], out, block)


def check_text_padding(case, precision):
    """Check padding as in the reference's batches, and in arrays of fixed size with the longest question's extent."""
    model = build(case.config["model"])
    variables = variables_of(case, model)
    video, mask = padded([case["in/feats"]], case.config["model"]["max_seq_len"])
    longest = case.manifest["longer_length"]
    for name, length in (("alone", case.manifest["query_length"]), ("with_longer", longest)):
        text, text_mask = padded([case["in/query_feats"]], length)
        fixed, fixed_mask = padded([case["in/query_feats"]], longest + 3)
        extent = np.arange(longest + 3)[None] < length
        batch = {"video": video, "mask": mask}
        for texts in (
            {"text": text, "text_mask": text_mask},
            {"text": fixed, "text_mask": fixed_mask, "extent": extent},
        ):
            levels = forward(model)(variables, batch | texts)
            for kind in ("logits", "offsets"):
                for level, ours in enumerate(getattr(levels, kind)):
                    reference = case[f"out/{name}/{kind}_l{level}"]
                    assert_close(ours, reference, case.tolerance["out"], f"{name} {kind} {level}")


CHECKERS = {
    "forward": check_forward,
    "attention": check_attention,
    "position_table": check_position_table,
    "text_padding": check_text_padding,
}
