"""The window rule of S3D's pools; tests/ops/test_forms.py compares the two forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops.pooling import max_pool_from_start


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2)])
def test_windows_start_at_multiples_of_the_stride_and_are_cut_off(length, window, stride):
    x = np.random.default_rng(length).normal(size=length).astype(np.float32)
    ours = max_pool_from_start(jnp.asarray(x)[None, None, None, :, None], (1, 1, window), (1, 1, stride))
    expected = [x[start : start + window].max() for start in range(0, length, stride)]
    np.testing.assert_array_equal(np.ravel(ours), expected)
