"""People and their actions on frames, on a sheet, and in a film."""

import matplotlib.image
import numpy as np
import pytest

from vlm_jax.errors import DataError
from vlm_jax.systems.lfb import drawing
from vlm_jax.systems.lfb.drawing import COLOURS, Shown, draw_film, draw_people, draw_sheet, link_people, people_at
from vlm_jax.systems.lfb.people import Action, Detection
from vlm_jax.video import decode
from vlm_jax.video.write import write_video

STAND = Action("stand", 12, 0.9)
LONG = Action("a very long name of an action that fits into no frame " * 5, 3, 0.5)


def at(second, left, action=STAND, width=0.2):
    return Detection(second, (left, 0.2, left + width, 0.8), [action])


def test_people_keep_their_number():
    """Two cross slowly in any order of rows; one leaves for too long and is another person when he is back."""
    rows = [
        at(0, 0.1),
        at(0, 0.7),
        at(1, 0.62),
        at(1, 0.15),
        at(2, 0.22),
        at(5, 0.24),
        at(6, 0.24),
        at(6, 0.9, width=0.1),
    ]
    assert link_people(rows) == [0, 1, 1, 0, 0, 2, 2, 3]
    assert link_people([]) == []


def test_the_best_pairs_are_linked_first():
    assert link_people([at(0, 0.1), at(0, 0.2), at(1, 0.19)]) == [0, 1, 1]


def test_boxes_move_between_keyframes_and_actions_change_half_way():
    walk = Action("walk", 14, 0.8)
    rows = [at(1, 0.1), at(2, 0.2, walk), at(4, 0.2), at(9, 0.2)]
    numbers = [0, 0, 0, 0]
    (shown,) = people_at(rows, numbers, 1.25)
    np.testing.assert_allclose(shown.box, (0.125, 0.2, 0.325, 0.8))
    assert shown.actions == [STAND]
    assert people_at(rows, numbers, 1.75)[0].actions == [walk]
    assert people_at(rows, numbers, 3.1)[0].actions == [STAND], "a keyframe is missing"
    found = {time: len(people_at(rows, numbers, time)) for time in (0.4, 0.5, 4.4, 4.6, 8.4, 8.6, 9.9, 10.1)}
    assert found == {0.4: 0, 0.5: 1, 4.4: 1, 4.6: 0, 8.4: 0, 8.6: 1, 9.9: 1, 10.1: 0}


@pytest.mark.parametrize("size", [(1, 1), (64, 48), (256, 256), (1080, 608)])
def test_any_frame_and_any_box_can_be_drawn(size):
    frame = np.full((*size, 3), 128, np.uint8)
    boxes = [(0, 0, 1, 1), (0.9, 0.9, 1, 1), (0, 0, 0.01, 0.01), (0.5, 0.5, 0.5, 0.5), (-0.2, 0.4, 1.3, 0.6)]
    people = [Shown(number, box, [STAND, LONG]) for number, box in enumerate(boxes)]
    drawn = draw_people(frame, people)
    assert drawn.shape == frame.shape
    assert (drawn != frame).any()
    assert (frame == 128).all(), "the user's frame stays"


def test_labels_cover_neither_heads_nor_one_another():
    """Two people who fill the frame's height, side by side."""
    frame = np.full((256, 456, 3), 128, np.uint8)
    people = [Shown(n, (0.3 + 0.2 * n, 0.02, 0.48 + 0.2 * n, 0.98), [STAND, STAND]) for n in (0, 1)]
    drawn = draw_people(frame, people).astype(int)
    for person in people:
        left, right = (round(456 * x) for x in (person.box[0], person.box[2]))
        assert (drawn[12:80, left + 4 : right - 4] == 128).all()
    dark = (abs(drawn - drawing.BACKING[:3]).sum(-1) < 120).sum()
    labels = [drawing._label((("stand", "0.90"),) * 2, COLOURS[n], drawing.text_size(456, 256), 456) for n in (0, 1)]
    assert dark > 0.6 * sum(label.width * label.height for label in labels), "both are seen whole"


def test_labels_are_no_wider_than_the_frame():
    label = drawing._label(((LONG.name, "0.50"),), COLOURS[0], 12, 100)
    assert label.width <= 100


def test_a_label_stays_on_its_side():
    """A place is kept from frame to frame while another one is only slightly better."""
    frame, sides = np.zeros((256, 456, 3), np.uint8), {}
    for left in (0.3, 0.31, 0.3):
        draw_people(frame, [Shown(0, (left, 0.3, left + 0.1, 0.9), [STAND])], sides)
    assert sides == {0: 0}
    sides = {0: 1}
    draw_people(frame, [Shown(0, (0.3, 0.3, 0.4, 0.9), [STAND])], sides)
    assert sides == {0: 1}


@pytest.mark.parametrize(("size", "expected"), [((270, 301), (270, 302)), ((64, 96), (256, 384))])
def test_films_keep_rate_and_length(tmp_path, size, expected):
    write_video(tmp_path / "film.mkv", np.full((30, *size, 3), 128, np.uint8), 12, lossless=True)
    rows = [at(0, 0.1), at(1, 0.5), at(2, 0.5)]
    draw_film(tmp_path / "film.mkv", rows, tmp_path / "new" / "out.mp4")
    info = decode.probe(tmp_path / "new" / "out.mp4")
    assert (info.height, info.width, info.frame_rate, info.codec) == (*expected, 12, "h264")
    frames = decode.read_frames(tmp_path / "new" / "out.mp4").astype(int)
    assert len(frames) == 30
    edge = frames[12, expected[0] // 2, round(0.5 * expected[1]) : round(0.5 * expected[1]) + 2].mean(0)
    assert np.argmax(edge - 128) == np.argmax(np.array(COLOURS[1]) - 128), "the box of the second person"


def test_films_without_people_are_copied(tmp_path):
    write_video(tmp_path / "film.mp4", np.full((9, 256, 256, 3), 128, np.uint8), 9)
    draw_film(tmp_path / "film.mp4", [], tmp_path / "out.mp4")
    assert abs(decode.read_frames(tmp_path / "out.mp4").astype(int) - 128).max() < 4


@pytest.mark.parametrize(("seconds", "expected"), [((3,), (480, 640)), ((0, 1, 2, 3), (968, 1936))])
def test_sheets(tmp_path, seconds, expected):
    write_video(tmp_path / "film.mp4", np.full((40, 48, 64, 3), 128, np.uint8), 10)
    draw_sheet(tmp_path / "film.mp4", [at(second, 0.4) for second in seconds], tmp_path / "sheet.png")
    assert matplotlib.image.imread(tmp_path / "sheet.png").shape[:2] == expected
    with pytest.raises(DataError, match=r"sheet\.png: no people to draw"):
        draw_sheet(tmp_path / "film.mp4", [], tmp_path / "sheet.png")
