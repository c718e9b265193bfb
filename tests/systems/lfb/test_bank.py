"""Feature banks: windows, slots, files, and banks that do not fit."""

import json

import numpy as np
import pytest

from vlm_jax.errors import DataError
from vlm_jax.systems.lfb.bank import Bank, random_order, sample_slots, write_bank

VIDEOS = ("a", "b", "a", "a", "b")
SECONDS = (905, 905, 902, 910, 906)
COUNTS = (2, 1, 3, 0, 4)
SOURCE = {"fingerprint": "f" * 8, "checkpoint": "runs/baseline", "interval": 16}


def rows(dtype=np.float16):
    """Row i of all items holds the number i, twice."""
    return np.repeat(np.arange(10), 2).reshape(10, 2).astype(dtype)


def make(**changes):
    made = {"videos": VIDEOS, "seconds": SECONDS, "counts": COUNTS, "features": rows(), "source": SOURCE}
    return Bank.from_arrays(**{**made, **changes})


def test_the_window_begins_half_a_window_before_the_keyframe_and_ends_a_second_earlier_after_it():
    bank = make()
    found = {second: bank.rows_in_window("a", second, 6) for second in range(897, 912)}
    # Second 902 counts for keyframes 900 to 905, second 905 for 903 to 908.
    expected = dict.fromkeys(found, 0)
    for second in expected:
        expected[second] = 3 * (900 <= second <= 905) + 2 * (903 <= second <= 908)
    assert found == expected
    assert bank.rows_in_window("b", 905, 60) == 5
    assert bank.rows_in_window("b", 905, 60, per_second=3) == 4


def test_without_a_generator_every_box_gets_the_first_rows_of_each_second():
    features, slots = make().sample("a", 903, 2, None, window=6, per_second=2)
    assert features[:, 0].tolist() == [3, 4, 0, 1], "of second 902, then of 905"
    assert features.dtype == np.float16
    assert slots.dtype == np.int32
    # Seconds 900 to 905 with two slots each.
    assert slots.tolist() == [[-1] * 4 + [0, 1] + [-1] * 4 + [2, 3]] * 2


def test_boxes_draw_without_replacement_and_apart_from_each_other():
    bank = make()
    features, slots = bank.sample("b", 906, 200, np.random.default_rng(0), window=2, per_second=3)
    assert features[:, 0].tolist() == [2, 6, 7, 8, 9]
    assert slots.shape == (200, 6)
    assert (slots[:, :3] == [0, -1, -1]).all()
    drawn = slots[:, 3:]
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=5)[1:]
    assert counts.sum() == 600
    assert counts.min() > 120, "all rows are equally likely"
    again = bank.sample("b", 906, 200, np.random.default_rng(0), window=2, per_second=3)[1]
    np.testing.assert_array_equal(slots, again)


def test_an_order_permutes_rows_within_their_second():
    counts = np.array([0, 3, 1, 0, 2])
    order = random_order(counts, 50, np.random.default_rng(1))
    assert np.sort(order, 1).tolist() == [list(range(6))] * 50
    assert order.max(0).tolist() == [2, 2, 2, 3, 5, 5]
    assert order.min(0).tolist() == [0, 0, 0, 3, 4, 4]
    assert len({tuple(row) for row in order.tolist()}) > 6


def test_a_window_without_rows_and_a_clip_without_boxes():
    features, slots = make().sample("a", 1000, 3, np.random.default_rng(0), window=4, per_second=2)
    assert features.shape == (0, 2)
    assert (slots == np.full((3, 8), -1)).all()
    features, slots = make().sample("a", 903, 0, np.random.default_rng(0), window=4, per_second=2)
    assert slots.shape == (0, 8)
    assert sample_slots(np.array([2]), np.array([[1, 0]]), 3).tolist() == [[1, 0, -1]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_bank_on_disk_is_the_bank_that_was_written(tmp_path, dtype):
    written = write_bank(tmp_path / "bank", VIDEOS, SECONDS, COUNTS, rows(dtype), SOURCE)
    bank = Bank.open([tmp_path / "bank"])
    for found in (written, bank):
        assert (found.dim, found.dtype, found.source) == (2, dtype, SOURCE)
        assert list(found.videos) == ["a", "b"]
        for video, second in zip(VIDEOS, SECONDS, strict=True):
            ours, expected = (each.sample(video, second, 1, None, window=9) for each in (found, make()))
            np.testing.assert_array_equal(ours[0], expected[0])
            np.testing.assert_array_equal(ours[1], expected[1])
    assert isinstance(bank.videos["a"].features, np.memmap)


def test_features_that_a_sink_has_written_stay_in_place(tmp_path):
    (tmp_path / "bank").mkdir()
    np.save(tmp_path / "bank" / "features.npy", rows())
    inode = (tmp_path / "bank" / "features.npy").stat().st_ino
    mapped = np.load(tmp_path / "bank" / "features.npy", mmap_mode="r")
    assert write_bank(tmp_path / "bank", VIDEOS, SECONDS, COUNTS, mapped, SOURCE).rows_in_window("b", 905, 60) == 5
    assert (tmp_path / "bank" / "features.npy").stat().st_ino == inode


def test_a_video_in_several_banks_is_read_from_the_last(tmp_path):
    write_bank(tmp_path / "train", VIDEOS, SECONDS, COUNTS, rows(), SOURCE)
    write_bank(tmp_path / "val", ["b", "c"], [906, 1], [1, 1], 50 + rows()[:2], {**SOURCE, "checkpoint": "moved"})
    bank = Bank.open([tmp_path / "train", tmp_path / "val"])
    assert bank.sample("b", 906, 1, None)[0][:, 0].tolist() == [50], "also second 905 is gone"
    assert bank.rows_in_window("a", 905, 60) == 5
    assert bank.source["checkpoint"] == "moved"
    with pytest.raises(DataError, match=r"^bank .*train, bank .*val: no features of video 'd'; it has 3 videos$"):
        bank.rows_in_window("d", 905, 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": rows()[:, :1]}, "made with dim = 1, but bank .*train with 2"),
        ({"features": rows(np.float32)}, "made with dtype = 'float32', but bank .*train with 'float16'"),
        ({"source": {**SOURCE, "fingerprint": "0"}}, "made with source.fingerprint = '0', but bank .*train with 'ffff"),
        ({"source": {"fingerprint": "f" * 8}}, "made with source.interval = None, but bank .*train with 16"),
    ],
)
def test_banks_that_do_not_fit_together(tmp_path, change, message):
    arrays = {"videos": VIDEOS, "seconds": SECONDS, "counts": COUNTS, "features": rows(), "source": SOURCE}
    write_bank(tmp_path / "train", **arrays)
    write_bank(tmp_path / "val", **{**arrays, **change})
    with pytest.raises(DataError, match=message) as caught:
        Bank.open([tmp_path / "train", tmp_path / "val"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": (2, 1, 3, 0, 5)}, "10 rows of features, but the counts sum up to 11"),
        ({"counts": (2, 1, 3, 0)}, "found 5 videos, 5 seconds and 4 counts of items"),
        ({"counts": (2, 1, 3, -1, 5)}, "no whole numbers from 0 on"),
        ({"seconds": (905, 905, 905, 910, 906)}, "second 905 of video 'a' comes twice"),
        ({"seconds": (905, 905, 902.5, 910, 906)}, "no whole numbers from 0 on"),
        ({"features": rows()[:0], "counts": (0,) * 5}, "has no features"),
        ({"videos": (), "seconds": (), "counts": (), "features": rows()[:0]}, "has no features"),
        ({"features": rows(np.int32)}, r"features are int32 \[10, 2\], expected"),
        (
            {"features": np.where(rows(np.float32) == 6, np.nan, 1).astype(np.float32)},
            "of video 'b', second 906, is not",
        ),
        (
            {"features": np.where(rows(np.float32) == 5, np.inf, 1).astype(np.float16)},
            "of video 'a', second 902, is not",
        ),
    ],
)
def test_arrays_that_are_no_bank(tmp_path, change, message):
    arrays = {"videos": VIDEOS, "seconds": SECONDS, "counts": COUNTS, "features": rows(), "source": SOURCE}
    with pytest.raises(DataError, match=message) as caught:
        write_bank(tmp_path / "bank", **{**arrays, **change})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bank").exists()


def damage(folder, file, content):
    (folder / file).write_bytes(content)


def edit(folder, **changes):
    content = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "bank.json").unlink(), "no bank.json there; expected a folder of a bank"),
        (lambda folder: damage(folder, "bank.json", b"{"), "bank.json: damaged"),
        (lambda folder: damage(folder, "bank.json", b"[]"), "bank.json: not the settings of a bank"),
        (lambda folder: edit(folder, kind="ctrl"), "bank.json: not the settings of a bank; expected kind = 'lfb_bank'"),
        (lambda folder: edit(folder, item_videos=[0, 1, 0, 0, 2]), "bank.json: damaged"),
        (lambda folder: edit(folder, item_seconds=["905"] * 5), "bank.json: damaged"),
        (lambda folder: edit(folder, source=None), "bank.json: damaged"),
        (lambda folder: edit(folder, videos=["a", 2]), "bank.json: damaged"),
        (lambda folder: edit(folder, dim=3), r"features.npy: float16 \[10, 2\], not what bank.json says"),
        (lambda folder: (folder / "features.npy").unlink(), "features.npy: no such file"),
        (lambda folder: damage(folder, "features.npy", b"\x93NUMPY"), "features.npy: damaged"),
        (lambda folder: damage(folder, "counts.npy", b""), "counts.npy: damaged"),
        (lambda folder: np.save(folder / "counts.npy", np.ones((5, 1), int)), "counts.npy: holds"),
        (lambda folder: np.save(folder / "counts.npy", np.array([9, 9, 9, 9, 9])), "the counts sum up to 45"),
        (
            lambda folder: damage(folder, "features.npy", (folder / "features.npy").read_bytes()[:-5]),
            "features.npy: damaged",
        ),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path, harm, message):
    write_bank(tmp_path / "bank", VIDEOS, SECONDS, COUNTS, rows(), SOURCE)
    harm(tmp_path / "bank")
    with pytest.raises(DataError, match=message) as caught:
        Bank.open([tmp_path / "bank"])
    assert "\n" not in str(caught.value)


def test_no_folder():
    with pytest.raises(DataError, match="no folder is given"):
        Bank.open([])
