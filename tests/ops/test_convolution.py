"""Convolutions against XLA's own, and space-to-depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops.convolution import convolve, convolve_depthwise, convolve_depthwise_planes, space_to_depth


def test_space_to_depth_has_colour_fastest():
    x = np.arange(2 * 2 * 2 * 3).reshape(1, 2, 2, 2, 3)
    np.testing.assert_array_equal(space_to_depth(x)[0, 0, 0, 0], np.arange(24))
    with pytest.raises(ValueError, match="found 3x4x4"):
        space_to_depth(jnp.ones((1, 3, 4, 4, 3)))


def test_plain_stem_as_a_space_to_depth_convolution():
    """The 3x7x7 kernel, set into 4x8x8 one step in and folded, gives the same on folded pixels."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 4, 16, 16, 3)), jnp.float32)
    kernel = rng.normal(size=(3, 7, 7, 3, 6)).astype(np.float32)
    plain = convolve(x, kernel, strides=(2, 2, 2), padding=((1, 1), (3, 3), (3, 3)))
    wide = np.zeros((4, 8, 8, 3, 6), np.float32)
    wide[1:, 1:, 1:] = kernel
    folded = wide.reshape(2, 2, 4, 2, 4, 2, 3, 6).transpose(0, 2, 4, 1, 3, 5, 6, 7).reshape(2, 4, 4, 24, 6)
    ours = convolve(space_to_depth(x), folded, padding=((1, 0), (2, 1), (2, 1)))
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("taps", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_depthwise_is_one_group_a_channel_and_so_is_its_gradient(taps, stride):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 12, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(taps, 6)), jnp.float32)

    def grouped(x, kernel, stride):
        layout, pad = ("NHC", "HIO", "NHC"), taps // 2
        return jax.lax.conv_general_dilated(
            x, kernel[:, None], (stride,), [(pad, pad)], dimension_numbers=layout, feature_group_count=6
        )

    def gradients(function):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(function(x, kernel, stride)))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)

    results = [gradients(function) for function in (convolve_depthwise, grouped)]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_depthwise_planes_are_one_group_a_channel():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 7, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 6)), jnp.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    grouped = jax.lax.conv_general_dilated(
        x, kernel[:, :, None], (1, 1), "SAME", dimension_numbers=layout, feature_group_count=6
    )
    np.testing.assert_allclose(convolve_depthwise_planes(x[:, None], kernel)[:, 0], grouped, rtol=1e-4, atol=1e-5)
    assert convolve_depthwise_planes(x.astype(jnp.bfloat16), kernel).dtype == jnp.bfloat16
