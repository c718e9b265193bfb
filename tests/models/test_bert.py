"""BERT: padding, its two uses, what gets no gradient, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.bert import Bert

PAD, SEPARATOR = 0, 4
SMALL = Bert(20, PAD, SEPARATOR, features=8, num_layers=2, heads=2, hidden=16, positions=12)
IDS = jnp.array([[2, 7, 8, 9, 4, 0, 0], [2, 11, 4, 0, 0, 0, 0]])
VISUAL = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)), jnp.float32)


def both(model):
    return model.text(IDS, IDS != PAD), model.cross(IDS, IDS != PAD, VISUAL)


@pytest.fixture(scope="module")
def variables():
    made = SMALL.init(jax.random.key(0), method=both)
    # The published initial weights are so small that positions hardly matter.
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), made)


def run(variables, method, *inputs, **options):
    return SMALL.apply(variables, *inputs, method=method, **options)


def test_published_size():
    model = Bert(30522, 0, 102)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IDS, IDS != PAD, method="text"))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_482_240


def test_padding_changes_nothing_but_the_words_that_are_none(variables):
    longer = jnp.pad(IDS, ((0, 0), (0, 3)))
    loud = longer.at[:, 7:].set(13)
    mask = longer != PAD
    short = run(variables, "text", IDS, IDS != PAD)
    for ids in (longer, loud):
        long = run(variables, "text", ids, mask)
        for row, length in enumerate((5, 3)):
            np.testing.assert_allclose(long.sequence[row, :length], short.sequence[row, :length], atol=1e-5)
        np.testing.assert_allclose(long.embedding, short.embedding, atol=1e-6)
        assert not np.asarray(long.importance)[~np.asarray(mask)].any()
    np.testing.assert_allclose(short.importance.sum(-1), 2 * 7, rtol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(short.embedding, axis=-1), 1, rtol=1e-5)

    alone = run(variables, "cross", IDS, IDS != PAD, VISUAL)
    padded = run(variables, "cross", loud, mask, VISUAL)
    np.testing.assert_allclose(padded.visual, alone.visual, atol=1e-5)
    np.testing.assert_allclose(padded.pooled, alone.pooled, atol=1e-5)
    assert alone.text.shape == (2, 7, 8)
    assert alone.visual.shape == (2, 3, 8)


def test_visual_tokens_have_a_type_positions_and_a_separator_of_their_own(variables):
    embedded = run(variables, "embed_visual", VISUAL)
    assert embedded.shape == (2, 4, 8)
    words = run(variables, "embed_text", jnp.array([[7, 7, 7, SEPARATOR]]))
    params = variables["params"]
    change = params["type_embeddings"][0] - params["type_embeddings"][1]
    same = {"params": params | {"word_embeddings": params["word_embeddings"].at[SEPARATOR].add(change)}}
    # The separator differs from the word at the same position by its type only.
    np.testing.assert_allclose(run(same, "embed_visual", VISUAL)[0, 3], words[0, 3], atol=1e-5)


def test_what_gets_no_gradient(variables):
    def loss(variables):
        text, cross = run(variables, both)
        return (text.sequence**2).sum() + (cross.visual**3).sum()

    rows = jax.grad(loss)(variables)["params"]["word_embeddings"]
    np.testing.assert_array_equal(np.flatnonzero(jnp.abs(rows).sum(-1)), [2, 4, 7, 8, 9, 11])
    importance = jax.grad(lambda variables: (run(variables, both)[0].importance ** 2).sum())(variables)
    assert not any(leaf.any() for leaf in jax.tree.leaves(importance))


def test_dropout_is_off_in_evaluation_and_acts_on_the_importance_in_training(variables):
    inputs = IDS, IDS != PAD
    calm = run(variables, "text", *inputs)
    keys = {"rngs": {"dropout": jax.random.key(3)}}
    np.testing.assert_array_equal(calm.importance, run(variables, "text", *inputs, train=False, **keys).importance)
    first, again = (run(variables, "text", *inputs, True, **keys) for _ in range(2))
    np.testing.assert_array_equal(first.sequence, again.sequence)
    assert not np.allclose(first.importance.sum(-1), calm.importance.sum(-1))
    other = run(variables, "text", *inputs, True, rngs={"dropout": jax.random.key(4)})
    assert not np.allclose(first.embedding, other.embedding)
