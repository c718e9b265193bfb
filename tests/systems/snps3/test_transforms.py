"""Views of frames: sizes, crops, pictures smaller than the crop, padding."""

import numpy as np
import pytest

from vlm_jax.systems.snps3 import transforms
from vlm_jax.systems.snps3.config import default_config


def settings(**changes):
    frames = default_config().frames
    frames.update(size=16, short_side=(18, 24), evaluation_short_side=20, max_size=64, **changes)
    return frames


def ramp(height, width, count=2):
    """Frames whose red is 3 times the row, and green 3 times the column."""
    video = np.zeros((count, height, width, 3), np.uint8)
    video[..., 0], video[..., 1] = 3 * np.arange(height)[:, None], 3 * np.arange(width)
    return video


@pytest.mark.parametrize("size", [(30, 40), (40, 30), (20, 20), (5, 9), (1, 1), (2, 60)])
@pytest.mark.parametrize("strict", [False, True])
def test_every_picture_fills_the_crop(size, strict):
    video, frames = ramp(*size), settings()
    shown = [transforms.training_view(video, frames, np.random.default_rng(seed), strict) for seed in range(8)]
    shown.append(transforms.evaluation_view(video, frames, strict))
    for view in shown:
        assert (view.shape, view.dtype) == ((2, 16, 16, 3), np.float32 if strict else np.uint8)
        assert np.isfinite(view).all()
    assert transforms.shown_size(*size, frames) == (16, 16)


def test_evaluation_shows_the_centre():
    view = transforms.evaluation_view(ramp(40, 60), settings(), strict=True)
    # 40 x 60 is resized to 20 x 30, of which rows 2 to 17 and columns 7 to 22 are shown.
    np.testing.assert_allclose(view[0, :, 0, 0], 3 * (2 * np.arange(2, 18) + 0.5))
    np.testing.assert_allclose(view[0, 0, :, 1], 3 * (2 * np.arange(7, 23) + 0.5))
    rounded = transforms.evaluation_view(ramp(40, 60), settings())
    np.testing.assert_array_equal(rounded, np.rint(view))


def test_training_draws_places_sizes_and_mirroring():
    frames = settings(flip=0.5)
    frames.augment.probability = 0.0
    views = [transforms.training_view(ramp(40, 60), frames, np.random.default_rng(n), True)[0] for n in range(60)]
    mirrored = [view[0, 0, 1] > view[0, -1, 1] for view in views]
    assert 15 < sum(mirrored) < 45
    # The step from row to row is 3 * 40 / short side.
    sides = {round(120 / float(view[5, 0, 0] - view[4, 0, 0])) for view in views}
    assert sides == set(range(18, 25))
    assert len({float(view[8, 0, 0]) for view in views}) > 20
    frames.flip = 0.0
    assert all(
        np.diff(transforms.training_view(ramp(40, 60), frames, np.random.default_rng(n))[0, 0, :, 1].astype(int)).min()
        >= 0
        for n in range(8)
    )


def test_all_frames_of_a_video_are_changed_alike():
    video = ramp(40, 60, 3)
    for seed in range(20):
        shown = transforms.training_view(video, settings(), np.random.default_rng(seed))
        assert (shown == shown[:1]).all()


def test_whole_frames_have_a_drawn_longer_side():
    frames = settings(form="whole")
    assert transforms.evaluation_view(ramp(30, 40), frames).shape == (2, 48, 64, 3)
    assert transforms.shown_size(30, 40, frames) == (48, 64)
    frames.max_size = 288
    sides = {transforms.training_view(ramp(4, 8, 1), frames, np.random.default_rng(n)).shape[2] for n in range(30)}
    assert sides == {224, 256, 288}
    frames.random_scale = False
    assert transforms.training_view(ramp(4, 8, 1), frames, np.random.default_rng(0)).shape == (1, 144, 288, 3)


def test_small_max_sizes_are_the_only_scale():
    assert transforms.random_scales(64) == [64]
    assert transforms.long_side_size(1, 1000, 64) == (1, 64)


def test_padding_is_below_and_beside_the_picture():
    canvas = transforms.on_canvas(np.ones((1, 2, 3, 3), np.uint8), 4, 5)
    assert canvas.sum(-1).astype(bool).tolist() == [[[1] * 3 + [0] * 2] * 2 + [[0] * 5] * 2]
