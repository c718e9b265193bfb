"""Windows, their context and their pairs: edges beyond the golden cases, and one slow rule to hold the fast one to."""

import time

import numpy as np
import pytest

from vlm_jax.systems.ctrl import windows


@pytest.mark.parametrize(
    ("frames", "expected"), [(63, []), (64, []), (65, [1]), (76, [1]), (77, [1, 13]), (89, [1, 13, 25])]
)
def test_the_last_window_ends_within_the_video(frames, expected):
    made = windows.sliding_windows(frames, (64,))
    assert made.tolist() == [[start, start + 64] for start in expected]


def test_one_length_after_the_other_and_no_step():
    assert windows.sliding_windows(20, (8, 16), 0.5).tolist() == [[1, 9], [5, 13], [9, 17], [1, 17]]
    assert windows.sliding_windows(20, ()).shape == (0, 2)
    with pytest.raises(ValueError, match=r"windows of 4 frames with an overlap of 0\.8 have a step of 0 frames"):
        windows.sliding_windows(20, (4,))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s13-d21.avi_1_65.npy", ("s13-d21.avi", 1, 65)),
        ("s13-d21.avi_1_65", ("s13-d21.avi", 1, 65)),
        ("a_b_c.mp4_10_200.npy", ("a_b_c.mp4", 10, 200)),
        ("v_1_2_3_4", ("v_1_2", 3, 4)),
        ("AO8RW_5_9.mp4", ("AO8RW", 5, 9)),
        ("s13-d21.avi_1.npy", None),
        ("s13-d21.avi_a_b.npy", None),
        ("_1_2.npy", None),
        ("notes.txt", None),
    ],
)
def test_names_are_read_from_the_right(name, expected):
    assert windows.parse(name) == expected


def test_odd_files_are_skipped_and_counted():
    found = windows.window_files(
        ["b.avi_9_10.npy", ".DS_Store", "b.avi_1_2.npy", "x.npy", "b.avi_3_4.txt", "a_1_2.npy"]
    )
    assert found.names == ["a_1_2.npy", "b.avi_1_2.npy", "b.avi_9_10.npy"]
    assert found.videos == ["a", "b.avi", "b.avi"]
    assert found.spans.tolist() == [[1, 2], [1, 2], [9, 10]]
    assert found.skipped == [".DS_Store", "b.avi_3_4.txt", "x.npy"]
    assert windows.window_files([]).spans.shape == (0, 2)


def test_context_of_exact_windows_and_of_the_nearest():
    spans = np.array([[1, 65], [65, 129], [129, 193], [70, 130], [1, 129]])
    before, after = windows.context(spans, count=2, size=64)
    assert before.tolist() == [[0, 0], [0, 0], [1, 0], [3, 3], [4, 4]]
    assert after.tolist() == [[1, 2], [2, 2], [2, 2], [3, 3], [2, 2]]
    before, after = windows.context(spans, count=1, size=64, mode=windows.NEAREST)
    assert before[:, 0].tolist() == [0, 0, 1, 0, 0]
    assert after[:, 0].tolist() == [1, 2, 2, 2, 2]


def test_a_gap_repeats_the_stretch_nearer_by_until_one_is_found():
    spans = np.array([[200, 210], [170, 180], [160, 170]])
    before, _ = windows.context(spans, count=4, size=10)
    assert before[0].tolist() == [0, 0, 1, 2]


def test_visual_features_are_means_around_the_window_s_own():
    features = np.arange(8, dtype=np.float32).reshape(4, 2)
    before, after = np.array([[0, 1], [1, 1]])[[0, 0, 1, 1]], np.array([[3, 3]] * 4)
    made = windows.visual_features(features, np.array([2, 0]), before, after)
    assert made.dtype == np.float32
    assert made.tolist() == [[2, 3, 4, 5, 6, 7], [1, 2, 0, 1, 6, 7]]


def slow_pairs(window_videos, spans, moment_videos, moments):
    """Both loops of the reference."""
    found = []
    for row, (video, (start, end)) in enumerate(zip(window_videos, spans.tolist(), strict=True)):
        for column, (other, (first, last)) in enumerate(zip(moment_videos, moments.tolist(), strict=True)):
            shared = min(end, last) - max(start, first)
            overlap = shared / (max(end, last) - min(start, first))
            if video == other and overlap > 0.5 and (end - start - shared) / (end - start) < 0.15:
                found.append([row, column])
    return found


def test_pairs_are_those_of_the_two_loops_in_their_order():
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(1, 300, 400), rng.choice([64, 128], 400)
    spans = np.stack([starts, starts + lengths], 1)
    starts, lengths = rng.integers(1, 300, 60), rng.integers(50, 150, 60)
    moments = np.stack([starts, starts + lengths], 1)
    names = [rng.choice(["a", "b", "c"], count).tolist() for count in (400, 60)]
    names[1][:3] = ["without windows"] * 3
    expected = slow_pairs(names[0], spans, names[1], moments)
    assert len(expected) > 100
    assert windows.select_pairs(names[0], spans, names[1], moments).tolist() == expected
    assert windows.select_pairs(names[0], spans, [], np.zeros((0, 2))).shape == (0, 2)
    assert windows.select_pairs([], np.zeros((0, 2)), names[1], moments).shape == (0, 2)


def test_exact_ties_and_nothing_at_all_are_out():
    video, moments = ["a"], np.array([[0, 100]])
    for span, count in (([0, 50], 0), ([0, 51], 1), ([15, 115], 0), ([14, 114], 1), ([3, 3], 0)):
        assert len(windows.select_pairs(video, np.array([span]), video, moments)) == count
    overlap, outside = windows.overlap_and_outside(np.array([[5, 5]]), np.array([[5, 5]]))
    assert np.isnan(overlap[0])
    assert np.isnan(outside[0])


def test_all_of_tacos_is_paired_in_seconds():
    """161,396 windows of 127 videos with 10,146 sentences."""
    rng = np.random.default_rng(0)
    spans = np.concatenate([windows.sliding_windows(8441)] * 127)[:161396]
    videos = np.repeat([f"s{n}.avi" for n in range(127)], -(-len(spans) // 127))[: len(spans)].tolist()
    starts = rng.integers(1, 8000, 10146)
    moments = np.stack([starts, starts + rng.integers(30, 600, 10146)], 1)
    asked = rng.choice(sorted(set(videos)), 10146).tolist()
    began = time.process_time()
    pairs = windows.select_pairs(videos, spans, asked, moments)
    assert time.process_time() - began < 10
    assert (len(spans), len(asked)) == (161396, 10146)
    assert len(pairs) > 10000


def test_window_means_fall_back_on_the_nearest_row():
    features = np.arange(10.0)[:, None] * [1.0, 2.0]
    centres = np.arange(10) * 10.0 + 5
    spans = np.array([[0, 20], [5, 15], [6, 14], [95, 300], [96, 300]])
    found = windows.window_means(features, centres, spans)
    assert found.dtype == np.float32
    assert found[:, 0].tolist() == [0.5, 0.0, 0.0, 9.0, 9.0]
    np.testing.assert_array_equal(found[:, 1], 2 * found[:, 0])
