"""Precision of the transformers: wide softmax and norms in bfloat16, and nothing narrow in a float64 run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.bert import Bert
from vlm_jax.models.pvt import PyramidTransformer
from vlm_jax.models.swin3d import VideoSwin

VIDEO = np.random.default_rng(0).normal(size=(1, 2, 64, 64, 3)).astype(np.float32)
IDS = np.array([[1, 5, 6, 0]])


def run_text(model):
    return model.text(IDS, IDS != 0), model.cross(IDS, IDS != 0, jnp.asarray(VIDEO[0, :, 0, :8, 0], model.dtype)[None])


def run_video(model):
    return model(jnp.asarray(VIDEO, model.dtype))


CASES = {
    "bert": (lambda dtype: Bert(9, 0, 3, 8, 1, 2, 16, 12, dtype=dtype), run_text),
    "swin": (lambda dtype: VideoSwin(4, (2,), (1,), (2, 3, 3), dtype=dtype), run_video),
    "pvt": (lambda dtype: PyramidTransformer((4, 8), (1, 1), (1, 2), (2, 2), (2, 1), dtype=dtype), run_video),
}


def operations(jaxpr):
    """Return name and result types of everything that a computation does, inner ones included."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name, {variable.aval.dtype for variable in equation.outvars}
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns"):
                    yield from operations(inner)
                elif hasattr(inner, "jaxpr"):
                    yield from operations(inner.jaxpr)


@pytest.mark.parametrize("name", CASES)
def test_softmax_and_norms_are_wide_in_bfloat16(name):
    make, method = CASES[name]
    model = make(jnp.bfloat16)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), method=method))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    made = jax.make_jaxpr(lambda variables: model.apply(variables, method=method))(variables)
    found = list(operations(made.jaxpr))
    for wide in ("exp", "rsqrt", "reduce_max"):
        assert {kind for each, kinds in found if each == wide for kind in kinds} == {np.dtype("float32")}
    products = {kind for each, kinds in found if each in ("dot_general", "conv_general_dilated") for kind in kinds}
    assert products == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("name", CASES)
def test_a_float64_run_is_float64_throughout(name):
    make, method = CASES[name]
    model = make(jnp.float32)
    with jax.enable_x64(True):
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), method=method))
        variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float64"), variables)
        made = jax.make_jaxpr(lambda variables: model.apply(variables, method=method))(variables)
    products = {kind for each, kinds in operations(made.jaxpr) if each in ("dot_general", "exp") for kind in kinds}
    assert products == {np.dtype("float64")}
