"""CTRL's network beyond the golden cases: sizes, initial values, which axis is which, its two forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.systems.ctrl.model import Ctrl

SMALL = Ctrl(dim=8, hidden_dim=6)


def inputs(clips=3, sentences=4):
    rng = np.random.default_rng(0)
    return rng.random((clips, 12), np.float32), rng.normal(size=(sentences, 5)).astype(np.float32)


def by_hand(params, visual, sentence, bias):
    """One pair after the other, in numpy."""

    def dense(x, layer):
        return x @ layer["kernel"] + (layer["bias"] if bias else 0)

    def embed(x, layer):
        z = dense(x, layer)
        return z / np.sqrt(max(z @ z, 1e-12) if bias else z @ z + 1e-12)

    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    out = np.zeros((len(sentence), len(visual), 3))
    for i, s in enumerate(sentence):
        for j, x in enumerate(visual):
            c, e = embed(x, params["clip_projection"]), embed(s, params["sentence_projection"])
            hidden = np.maximum(dense(np.concatenate([c * e, c + e, c, e]), params["hidden"]), 0)
            out[i, j] = dense(hidden, params["output"])
    return out


@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("original", [True, False])
def test_every_pair_by_hand(factored, original):
    options = {"use_bias": True, "normalisation": "floor"} if original else {}
    model = SMALL.clone(factored=factored, **options)
    visual, sentence = inputs()
    params = model.init(jax.random.key(0), visual, sentence)["params"]
    if original:
        leaves, tree = jax.tree.flatten(params)
        params = jax.tree.unflatten(tree, [leaf + 0.1 * (number + 1) for number, leaf in enumerate(leaves)])
    ours = model.apply({"params": params}, visual, sentence)
    assert ours.shape == (4, 3, 3), "sentences, clips, (score, start, end)"
    np.testing.assert_allclose(ours, by_hand(params, visual, sentence, original), rtol=1e-4, atol=1e-5)


def test_the_forms_agree_and_the_blocks_are_not_interchangeable():
    visual, sentence = inputs(20, 30)
    variables = SMALL.init(jax.random.key(1), visual, sentence)
    factored = SMALL.apply(variables, visual, sentence)
    plain = SMALL.clone(factored=False).apply(variables, visual, sentence)
    np.testing.assert_allclose(factored, plain, atol=1e-5)
    kernel = variables["params"]["hidden"]["kernel"]
    for order in ([1, 0, 2, 3], [0, 1, 3, 2], [2, 1, 0, 3]):
        swapped = jnp.concatenate([jnp.split(kernel, 4)[block] for block in order])
        changed = {"params": {**variables["params"], "hidden": {"kernel": swapped}}}
        assert np.abs(SMALL.apply(changed, visual, sentence) - plain).max() > 1e-3


def test_embeddings_are_of_length_one_even_of_nothing():
    visual, sentence = inputs()
    variables = SMALL.init(jax.random.key(0), visual, sentence)
    for method, x in (("embed_clips", visual), ("embed_sentences", sentence)):
        np.testing.assert_allclose(np.linalg.norm(SMALL.apply(variables, x, method=method), axis=1), 1, rtol=1e-6)
    for normalisation in ("added", "floor"):
        model = SMALL.clone(normalisation=normalisation)
        apply = lambda x, model=model: model.apply(variables, x, method="embed_clips").sum()  # noqa: E731
        assert apply(jnp.zeros((1, 12))) == 0
        assert np.isfinite(jax.grad(apply)(jnp.zeros((1, 12)))).all()


def test_a_tiny_row_tells_the_two_normalisations_apart():
    kernel = {"params": {"clip_projection": {"kernel": jnp.eye(8)}}}
    x = jnp.zeros((1, 8)).at[0, 0].set(1e-6)
    for normalisation, expected in (("added", 2**-0.5), ("floor", 1.0)):
        model = SMALL.clone(normalisation=normalisation)
        np.testing.assert_allclose(model.apply(kernel, x, method="embed_clips")[0, 0], expected, rtol=1e-5)


def test_published_sizes_and_initial_spread():
    visual, sentence = jnp.zeros((1, 12288)), jnp.zeros((1, 4800))
    shapes = jax.eval_shape(Ctrl().init, jax.random.key(0), visual, sentence)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 12288 * 1024 + 4800 * 1024 + 4096 * 1000 + 1000 * 3
    assert {name: set(layer) for name, layer in shapes.items()} == {name: {"kernel"} for name in shapes}
    narrow = jnp.zeros((1, 100)), jnp.zeros((1, 90))
    for model, head, out in ((Ctrl(), (2 / 4096) ** 0.5, (2 / 1000) ** 0.5), (Ctrl(head_std=0.01), 0.01, 0.01)):
        params = model.init(jax.random.key(0), *narrow)["params"]
        for name, expected in (("clip_projection", 1), ("sentence_projection", 1), ("hidden", head), ("output", out)):
            kernel = np.asarray(params[name]["kernel"])
            assert abs(kernel.std() / expected - 1) < 0.05
            assert abs(kernel.mean()) < 0.1 * expected
    biased = Ctrl(use_bias=True).init(jax.random.key(0), *narrow)["params"]
    assert all(not layer["bias"].any() for layer in biased.values())


def test_half_precision_inside_float32_outside():
    visual, sentence = inputs()
    variables = SMALL.init(jax.random.key(0), visual, sentence)
    half = SMALL.clone(dtype=jnp.bfloat16).apply(variables, visual, sentence)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, SMALL.apply(variables, visual, sentence), atol=0.05)
