"""RoIAlign: values and gradients against a plain loop over samples, padded maps, hostile boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.ops.roi_align import roi_align

SCALE = 1 / 16
HEIGHT, WIDTH = 5, 7
BOXES = np.array(
    [
        [3.0, 5.0, 90.0, 60.0],
        [0.0, 0.0, 112.0, 80.0],
        [17.3, 20.1, 19.9, 78.2],
        [-30.0, -22.0, 40.0, 30.0],  # partly outside
        [100.0, 70.0, 250.0, 190.0],
        [300.0, 300.0, 400.0, 400.0],  # wholly outside
        [40.0, 40.0, 40.0, 70.0],  # without width
        [10.0, 10.0, 10.0, 10.0],
        [60.0, 50.0, 30.0, 20.0],  # ends before it begins
        [0.0, 0.0, 900.0, 700.0],  # several samples per cell
    ]
)


def loop(feature, box, size, samples, aligned):
    """Return what RoIAlign is defined as, sample by sample, and the weight of every position in the sum of all."""
    height, width, channels = feature.shape
    offset = 0.5 if aligned else 0.0
    left, top, right, bottom = (value * SCALE - offset for value in box)
    spans = [bottom - top, right - left] if aligned else [max(bottom - top, 1.0), max(right - left, 1.0)]
    grid = [samples or int(np.ceil(span / size)) for span in spans]
    out, weight = np.zeros((size, size, channels)), np.zeros((height, width))
    count = max(grid[0] * grid[1], 1)
    for p in range(size):
        for q in range(size):
            for i in range(grid[0]):
                for j in range(grid[1]):
                    y = top + p * spans[0] / size + (i + 0.5) * spans[0] / size / grid[0]
                    x = left + q * spans[1] / size + (j + 0.5) * spans[1] / size / grid[1]
                    if y < -1 or y > height or x < -1 or x > width:
                        continue
                    for row, rows in corners(y, height):
                        for column, columns in corners(x, width):
                            out[p, q] += feature[row, column] * rows * columns / count
                            weight[row, column] += rows * columns / count
    return out, weight


def corners(place, size):
    """Return the two positions around a place, each with its weight."""
    place = max(place, 0.0)
    low = int(place)
    if low >= size - 1:
        return [(size - 1, 1.0)]
    return [(low, 1 - (place - low)), (low + 1, place - low)]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("size", "samples"), [(4, 0), (3, 2)])
def test_values_and_gradients_of_the_definition(aligned, size, samples):
    with jax.enable_x64(True):
        feature = np.random.default_rng(0).normal(size=(1, 1, HEIGHT, WIDTH, 3))

        def pooled(features):
            options = {"samples": samples, "aligned": aligned, "max_samples": 20}
            return roi_align(features, jnp.asarray(BOXES)[None], scale=SCALE, output_size=size, **options)

        out, back = jax.vjp(pooled, jnp.asarray(feature))
        for number, box in enumerate(BOXES):
            expected, weight = loop(feature[0, 0], box, size, samples, aligned)
            np.testing.assert_allclose(out[0, number, 0], expected, atol=1e-12)
            (gradient,) = back(jnp.zeros_like(out).at[0, number, ..., 1].set(1.0))
            np.testing.assert_allclose(gradient[0, 0, ..., 1], weight, atol=1e-12)


def test_boxes_without_area_and_outside_give_zeros():
    features = jnp.ones((1, 1, HEIGHT, WIDTH, 2))
    out = np.asarray(roi_align(features, jnp.asarray(BOXES, jnp.float32)[None], scale=SCALE, output_size=4))[0]
    assert not out[[5, 6, 7, 8]].any()
    np.testing.assert_allclose(out[:2], 1, atol=1e-6)


def test_what_is_padded_is_never_read():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 1, HEIGHT, WIDTH, 3)).astype(np.float32)
    padded = np.full((2, 1, HEIGHT + 3, WIDTH + 4, 3), np.nan, np.float32)
    padded[:, :, :HEIGHT, :WIDTH] = features
    boxes = jnp.asarray(np.stack([BOXES[:5], BOXES[1:6]]), jnp.float32)
    extents = jnp.array([[HEIGHT, WIDTH]] * 2)
    padded = jnp.nan_to_num(jnp.asarray(padded), nan=1e6)
    options = {"scale": SCALE, "output_size": 4}
    found = roi_align(padded, boxes, extents=extents, **options)
    np.testing.assert_allclose(found, roi_align(jnp.asarray(features), boxes, **options), rtol=1e-5, atol=1e-5)


def test_frames_are_pooled_one_by_one():
    features = np.random.default_rng(2).normal(size=(1, 3, HEIGHT, WIDTH, 2)).astype(np.float32)
    boxes = jnp.asarray(BOXES[:3], jnp.float32)[None]
    options = {"scale": SCALE, "output_size": 4}
    together = roi_align(jnp.asarray(features), boxes, **options)
    for frame in range(3):
        alone = roi_align(jnp.asarray(features[:, frame : frame + 1]), boxes, **options)
        np.testing.assert_allclose(together[:, :, frame], alone[:, :, 0], rtol=1e-6)
