"""Frames of clips beyond the golden case: frames per clip, and parts of videos."""

import numpy as np
import pytest

from vlm_jax.systems.snps3.sampling import frame_indices, part_of_video


@pytest.mark.parametrize("length", [0, 1, 2, 5, 16, 100])
@pytest.mark.parametrize("clips", [1, 4, 16])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("seed", [None, 0])
def test_frames_lie_within_the_video_in_order(length, clips, frames, seed):
    rng = None if seed is None else np.random.default_rng(seed)
    found = frame_indices(length, clips, rng, frames).reshape(clips, frames)
    assert found.min() >= 0
    assert found.max() <= max(length - 1, 0)
    assert (np.diff(found[:, 0]) >= 0).all()
    assert (np.diff(found, axis=1) == np.where(found[:, 1:] == max(length - 1, 0), np.diff(found, axis=1), 1)).all()


def test_frames_sampled_twice_are_those_of_evaluation():
    stored = frame_indices(301, 16)
    assert (stored[frame_indices(16, 16)] == stored).all()


def test_a_part_has_a_frame_at_least():
    assert part_of_video(1.5, 2.5, 4) == (6, 4)
    assert part_of_video(1.5, 1.6, 4) == (6, 1)
