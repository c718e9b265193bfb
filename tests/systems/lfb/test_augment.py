"""Views of frames and boxes, and the targets that are computed from boxes."""

import numpy as np
import pytest

from vlm_jax.systems.lfb import augment, targets
from vlm_jax.systems.lfb.augment import Augmentation, View
from vlm_jax.systems.lfb.targets import Matching
from vlm_jax.video.resize import resize

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)


@pytest.mark.parametrize("size", [(23, 31), (61, 97), (40, 60), (20, 30)])
def test_a_window_is_a_part_of_the_whole_picture(size):
    whole = resize(FRAMES, *size)
    assert whole.shape == (2, *size, 3)
    np.testing.assert_array_equal(resize(FRAMES, *size, (3, 5, 11, 13)), whole[:, 3:14, 5:18])


def test_halving_is_the_rounded_mean_of_four_pixels():
    parts = FRAMES.reshape(2, 20, 2, 30, 2, 3).astype(int).sum((2, 4))
    np.testing.assert_array_equal(resize(FRAMES, 20, 30), (parts + 2) >> 2)


def test_draws_cover_their_ranges_without_the_largest_offset():
    settings, rng = Augmentation((32, 34), 30, 0.5), np.random.default_rng(0)
    views = [settings.draw(rng, 40, 60) for _ in range(2000)]
    assert {view.height for view in views} == {32, 33, 34}
    # 34 rows leave offsets 0 to 4, of which the last is never drawn; so do 51 columns with offsets up to 20.
    assert {view.top for view in views if view.height == 34} == {0, 1, 2, 3}
    assert {view.left for view in views if view.height == 34} == set(range(21))
    assert 0.45 < np.mean([view.flip for view in views]) < 0.55
    assert all(view.rows == view.columns == 30 and view.cropped for view in views)


def test_a_frame_of_the_crops_size_is_not_shifted():
    view = Augmentation((40, 40), 40, 1.0).draw(np.random.default_rng(1), 40, 40)
    assert (view.top, view.left, view.flip) == (0, 0, True)
    np.testing.assert_array_equal(augment.view_frames(FRAMES[:, :, :40], view), FRAMES[:, :, 39::-1])
    # Even here boxes end at the last pixel's index, and mirroring takes the width.
    boxes = augment.view_boxes(np.array([[0.0, 0.0, 1.0, 1.0]]), 40, 40, view)
    np.testing.assert_array_equal(boxes, [[1, 0, 40, 39]])


def test_boxes_outside_of_the_crop_stay_without_area():
    boxes = augment.view_boxes(
        np.array([[0.0, 0.0, 0.1, 0.1], [0.2, 0.2, 0.8, 0.8]]), 100, 100, View(100, 100, 30, 30, 40, 40, True)
    )
    np.testing.assert_allclose(boxes, [[0, 0, 0, 0], [0, 0, 39, 39]])
    assert boxes.dtype == np.float32


def test_proposals_take_the_labels_of_their_person():
    truth = np.array([[0, 0, 100, 100], [0, 0, 98, 98]], np.float32)
    labels = np.eye(2, 5, dtype=bool)
    proposals = np.array([[0, 0, 99, 99], [0, 0, 50, 50], [200, 200, 200, 200]], np.float32)
    assigned, overlaps = targets.assign(truth, proposals, Matching())
    # The first proposal fits both people; both take it as their best one, and the last of them keeps it.
    assert assigned.tolist() == [2, 0, 0]
    np.testing.assert_allclose(overlaps, [max(99**2 / 100**2, 98**2 / 99**2), 0.2603082, 0], rtol=1e-6)
    boxes, actions = targets.positives(truth, labels, proposals, Matching(), np.random.default_rng(0))
    np.testing.assert_array_equal(boxes, [*truth, proposals[0]])
    assert actions.argmax(1).tolist() == [0, 1, 1]


def test_between_the_thresholds_a_proposal_is_ignored():
    truth, proposals = np.array([[0, 0, 10, 10]], np.float32), np.array([[0, 0, 10, 6]], np.float32)
    assigned, _ = targets.assign(truth, proposals, Matching(positive_iou=0.9, negative_iou=0.5))
    assert assigned.tolist() == [-1]


def test_more_positives_than_a_clip_takes_are_drawn_by_the_seed():
    truth = np.tile(np.array([[0, 0, 10, 10]], np.float32), (50, 1)) + np.arange(50, dtype=np.float32)[:, None]
    labels = np.eye(50, dtype=bool)
    drawn = [targets.positives(truth, labels, truth[:0], Matching(), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    chosen = [actions.argmax(1) for _, actions in drawn]
    assert len(chosen[0]) == 32
    assert (np.diff(chosen[0]) > 0).all()
    assert (chosen[0] == chosen[1]).all()
    assert (chosen[0] != chosen[2]).any()
    np.testing.assert_array_equal(drawn[0][0][:, 0], chosen[0])


def test_a_clip_without_proposals_or_people():
    empty = np.zeros((0, 4), np.float32)
    boxes, labels = targets.positives(empty, np.zeros((0, 5), bool), empty, Matching(), np.random.default_rng(0))
    assert boxes.shape == (0, 4)
    assert labels.shape == (0, 5)
