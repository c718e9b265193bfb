"""Queues of keys and the loss against them, worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.losses.momentum import enqueue, move_towards, queue_nce, random_queue


def test_keys_fill_the_queue_and_the_last_rows_at_its_end():
    queue, pointer = jnp.zeros((5, 1)), jnp.array(0)
    step = jax.jit(enqueue)
    for value, rows, behind in ((1, [1, 1, 0, 0, 0], 2), (2, [1, 1, 2, 2, 0], 4), (3, [1, 1, 2, 3, 3], 0)):
        queue, pointer = step(queue, pointer, jnp.full((2, 1), value, float))
        assert (queue[:, 0].tolist(), int(pointer)) == (rows, behind)


def test_keys_that_are_not_numbers_are_skipped():
    queue = jnp.ones((4, 2))
    kept, pointer = enqueue(queue, jnp.array(2), jnp.array([[0.0, jnp.nan], [0.0, 0.0]]))
    np.testing.assert_array_equal(kept, queue)
    assert int(pointer) == 2


def test_more_keys_than_rows():
    with pytest.raises(ValueError, match="at most 2 keys"):
        enqueue(jnp.ones((2, 1)), jnp.array(0), jnp.ones((3, 1)))


def test_the_queue_keeps_its_type():
    queue, _ = enqueue(jnp.ones((2, 1)), jnp.array(0), jnp.ones((1, 1), jnp.bfloat16))
    assert queue.dtype == jnp.float32


def test_a_random_queue_has_rows_of_length_one():
    rows = random_queue(jax.random.key(0), 6, 16)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    assert abs(float(rows[0] @ rows[1])) < 0.9


def test_a_quarter_of_the_way():
    moved = move_towards({"a": jnp.zeros(2)}, {"a": jnp.array([4.0, 8.0])}, 0.75)
    np.testing.assert_allclose(moved["a"], [1, 2])


def test_two_positives_and_one_negative_by_hand():
    queries, positives = jnp.array([[1.0, 0.0]]), jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
    found = queue_nce(queries, positives, jnp.array([[0.6, 0.8]]), 0.5)
    expected = -math.log((math.exp(2) + 1) / (math.exp(2) + 1 + math.exp(1.2)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    halves = queue_nce(*(each.astype(jnp.bfloat16) for each in (queries, positives, jnp.ones((1, 2)))), 0.5)
    assert halves.dtype == jnp.float32
