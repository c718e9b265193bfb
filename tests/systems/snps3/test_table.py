"""Table of a split: what is read is what was written, and damage is named."""

import dataclasses

import numpy as np
import pytest

from vlm_jax.errors import DataError
from vlm_jax.systems.snps3.annotations import Item, Line
from vlm_jax.systems.snps3.table import Texts, make_table, read_table, table_path, write_table


def line(number, name, text, **changes):
    return Line(number, name, "video", None, None, text, 0.0, number, **changes)


ITEMS = [
    Item(("a", 0.0, 2.0), "video", 0, [line(3, "a", "dög"), line(1, "a", "cat")]),
    Item(("lost", None, None), "video", 1, [line(2, "lost", "gone")]),
    Item(("b", None, None), "video", 2, [line(4, "b", "cat")]),
]
KEPT = {("a", 0.0, 2.0): (0, 30, 40), ("b", None, None): (1, 20, 10)}


def captions():
    return make_table(ITEMS, KEPT, [], 0)


def test_lost_items_leave_the_table_and_texts_are_numbered_as_in_the_file(tmp_path):
    write_table(table_path(tmp_path, "train"), captions())
    table = read_table(tmp_path, "train")
    assert len(table) == 2
    assert list(table.videos) == ["a", "b"]
    assert list(table.texts) == ["cat", "dög"]
    assert [table.captions(item) for item in range(2)] == [["dög", "cat"], ["cat"]]
    assert (table.pair_texts.tolist(), table.pair_videos.tolist()) == ([1, 0, 0], [0, 0, 1])
    assert table.video_numbers.tolist() == [0, 1]
    assert table.sizes.tolist() == [[30, 40], [20, 10]]
    assert [table.part(item) for item in range(2)] == [("a", 0.0, 2.0), ("b", None, None)]
    assert [table.labels(item) for item in range(2)] == [[], []]
    assert table.best_labels.tolist() == [-1, -1]


def test_equal_tables_are_equal_files(tmp_path):
    for name in ("one", "two"):
        write_table(tmp_path / name, captions())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_answers_are_labels_or_words_of_the_vocabulary():
    given = [(1,), ("Blue ",), ("purple", "red"), ("2",)]
    items = [Item(("a", 0.0, 2.0), "video", 0, [line(n, "a", "?", answers=own)]) for n, own in enumerate(given)]
    table = make_table(items, KEPT, ["red", "blue"], 2)
    assert [table.labels(item) for item in range(4)] == [[1], [1], [-1, 0], [-1]]
    assert table.best_labels.tolist() == [1, 1, 0, -1]
    assert list(table.answers) == ["blue", "Blue ", "purple, red", "2"]
    numbers = make_table(items[::3], KEPT, [], 2)
    assert [numbers.labels(item) for item in range(2)] == [[1], [-1]]


def test_options_and_the_right_one():
    items = [
        Item(("b", None, None), "video", 0, [line(1, "b", "", answers=(1,), options=("x", "y"))]),
        Item(("b", None, None), "video", 0, [line(2, "b", "", options=("z",))]),
    ]
    table = make_table(items, {("b", None, None): (0, 2, 2)}, [], 0)
    assert [table.options(item) for item in range(2)] == [["x", "y"], ["z"]]
    assert table.best_labels.tolist() == [1, -1]
    assert list(table.answers) == ["y", ""]


def test_texts_are_a_sequence():
    texts = Texts.of(["", "a", "ü", "\ud800"])
    assert list(texts) == ["", "a", "ü", "?"]
    assert texts[-2] == "ü"
    assert texts[1:3] == ["a", "ü"]
    with pytest.raises(IndexError):
        texts[4]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"records": np.array([1, 0])}, "items are not in the order of their records"),
        ({"records": np.array([0, 2])}, "items are not in the order of their records"),
        ({"first_caption": np.array([0, 3])}, "first_caption has 2 entries, expected 3"),
        ({"first_caption": np.array([0, 0, 3])}, "an item without a text"),
        ({"first_caption": np.array([0, 5, 3])}, "first_caption does not ascend from 0 to 3"),
        ({"caption_texts": np.array([1, 0, 7])}, "a caption without a text"),
        ({"sizes": np.array([[30, 0], [1, 1]])}, "a frame without pixels"),
        ({"qids": Texts.of(["a"])}, "qids has 1 entries, expected 2"),
        ({"videos": Texts(np.zeros(2, np.uint8), np.array([0, 9]))}, "videos does not ascend from 0 to 2"),
        ({"videos": Texts(np.zeros(2, np.uint8), np.array([0.0, 1.0, 2.0]))}, "videos is float64, expected int64"),
    ],
)
def test_damage_is_named(tmp_path, changes, fault):
    write_table(table_path(tmp_path, "train"), dataclasses.replace(captions(), **changes))
    with pytest.raises(DataError, match=rf"damaged \({fault}"):
        read_table(tmp_path, "train")


def test_a_missing_or_truncated_table_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path, "train")
    path = table_path(tmp_path, "train")
    write_table(path, captions())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="damaged"):
        read_table(tmp_path, "train")
