"""GroundNLQ checkpoints, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.interop.rules import ConversionError, flatten
from vlm_jax.systems.groundnlq import interop as names
from vlm_jax.systems.groundnlq.model import GroundNLQ


def made(**changes):
    """Variables of a small model, every number its own."""
    sizes = {"dim": 8, "head_dim": 8, "heads": 2, "text_blocks": 1, "stem_blocks": 1, "plain_blocks": 2}
    model = GroundNLQ(**sizes | {"max_length": 32} | changes)
    video, text = jnp.zeros((1, 32, 6)), jnp.zeros((1, 3, 5))
    shapes = jax.eval_shape(model.init, jax.random.key(0), video, jnp.ones((1, 32), bool), text, jnp.ones((1, 3), bool))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "changes", [{}, {"cross_blocks": 2, "plain_blocks": 0}, {"relative_bias": True, "embedding_norm": False}]
)
def test_there_and_back(changes):
    model, variables = made(**changes)
    source = names.to_state_dict(variables)
    back = names.to_variables(source, variables)
    for name, value in flatten(variables).items():
        np.testing.assert_array_equal(flatten(back)[name], value)
    options = names.model_options(source)["model"]
    assert options["cross_blocks"] == model.cross_blocks
    assert (options["video_dim"], options["text_dim"], options["dim"]) == (6, 5, 8)
    assert all(array.ndim != 1 or not name.endswith("ln1.weight") for name, array in source.items())


def test_raw_or_averaged_with_or_without_a_prefix():
    source = names.to_state_dict(made()[1])
    averaged = {f"module.{name}": value + 1 for name, value in source.items()}
    loaded = {"epoch": 5, "state_dict": source, "state_dict_ema": averaged}
    assert names.state_dict(loaded)[names.FIRST] is source[names.FIRST]
    np.testing.assert_array_equal(names.state_dict(loaded, average=True)[names.FIRST], source[names.FIRST] + 1)
    assert names.state_dict(source).keys() == source.keys()


def test_what_is_no_checkpoint_is_refused():
    with pytest.raises(ConversionError, match="it has no 'state_dict_ema'"):
        names.state_dict({"state_dict": {}}, average=True)
    with pytest.raises(ConversionError, match=r"it has no 'backbone.vid_embd.0.conv.weight' \(its first name is 'a'\)"):
        names.state_dict({"state_dict": {"a": np.zeros(1)}})


def test_unknown_and_missing_names_are_refused():
    _, variables = made()
    source = names.to_state_dict(variables)
    with pytest.raises(ConversionError, match=r"backbone\.extra\.weight"):
        names.to_variables(source | {"backbone.extra.weight": np.zeros(1)}, variables)
    del source["backbone.branch.0.ln1.bias"]
    with pytest.raises(ConversionError, match="params/pyramid_0/norm1/bias"):
        names.to_variables(source, variables)


def test_the_head_is_what_fine_tuning_starts_afresh():
    fresh = [name for name in names.to_state_dict(made()[1]) if "head" in name]
    assert {name.split(".")[0] for name in fresh} == {"cls_head", "reg_head"}
