"""Pipelines of training and evaluation on small records."""

import dataclasses
import itertools

import numpy as np
import pytest
from keyframe_files import FPS, INTERVAL, JITTER, options, prepared, write_frames, write_inputs
from ml_collections import ConfigDict
from record_files import assert_equal_batches, taken

from data_prep.lfb import prepare
from vlm_jax.errors import DataError, UserError
from vlm_jax.systems.lfb import data
from vlm_jax.systems.lfb.annotations import Sampling
from vlm_jax.systems.lfb.config import default_config
from vlm_jax.systems.lfb.keyframes import read_table, table_path, write_table
from vlm_jax.types import DataShard

SAMPLING = Sampling(4, INTERVAL, FPS, JITTER)
SHARD = DataShard(batch_size=2, seed=3)


class SmallBank:
    """Bank with one row per second from 900 to 905, whose value is the second."""

    dim, dtype = 3, np.dtype(np.float16)

    def rows_in_window(self, video, second, window, per_second=None):
        return len(self._seconds(second, window))

    def sample(self, video, second, num_boxes, rng, window, per_second):
        seconds = self._seconds(second, window)
        order = np.arange(len(seconds)) if rng is None else rng.permutation(len(seconds))
        slots = np.full((num_boxes, window * per_second), -1, np.int32)
        slots[:, : len(order)] = order
        return np.repeat(np.array(seconds, np.float16)[:, None], 3, 1), slots

    def _seconds(self, second, window):
        return [s for s in range(second - window // 2, second - window // 2 + window) if 900 <= s < 906]


BANK = SmallBank()


def make_config(folder, **changes):
    config = default_config()
    config.data.update(directory=str(folder), streams=2, workers=2, box_buckets=(2, 4), bank_buckets=(4, 8))
    config.clips.update(fps=FPS, interval=INTERVAL, jitter=JITTER, short_side=(32, 40), size=32)
    config.clips.evaluation_short_side = 32
    config.bank.window = 4
    config.update_from_flattened_dict(changes)
    return config


def training(folder, shard=SHARD, bank=None, **changes):
    return data.train_pipeline(make_config(folder, **changes), bank, shard)


def evaluation(folder, shard=SHARD, bank=None, **changes):
    wanted = ConfigDict({"directory": str(folder), "split": "train", "proposal_threshold": 0.85})
    return data.evaluation_pipeline(make_config(folder, **changes), wanted, bank, shard)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("keyframes"))


def test_a_training_batch_is_that_of_the_contract(folder):
    made = training(folder, bank=BANK)
    assert made.epoch_examples() == 4
    batch = next(iter(made))
    shapes = {name: (value.shape, value.dtype.name) for name, value in batch.items()}
    boxes = batch["boxes"].shape[1]
    assert boxes in (2, 4)
    assert shapes == {
        "video": ((2, 4, 32, 32, 3), "uint8"),
        "boxes": ((2, boxes, 4), "float32"),
        "box_mask": ((2, boxes), "bool"),
        "labels": ((2, boxes, 81), "bool"),
        "bank": ((2, 4, 3), "float16"),
        "slots": ((2, boxes, 20), "int32"),
    }
    assert (batch["labels"].any(-1) == batch["box_mask"]).all()
    assert not batch["labels"][..., 0].any()
    assert (batch["slots"][~batch["box_mask"]] == -1).all()
    assert "bank" not in next(iter(training(folder)))


def test_a_matching_proposal_is_a_further_box_with_the_labels_of_its_person(folder):
    table = read_table(folder, "train")
    keys = [table.key(number) for number in range(len(table))]
    made = training(folder)
    for batch, values in enumerate(taken(made, 2)):
        for number, mask, labels in zip(made.plan(batch).numbers, values["box_mask"], values["labels"], strict=True):
            video_second = keys[number]
            if video_second[1] == 902:  # one person, and a proposal with the same box
                assert mask.sum() in (1, 2)  # they differ where the crop leaves nothing of them
                assert all(np.flatnonzero(row).tolist() == [12, 17] for row in labels[mask])


def test_training_shows_the_frames_around_its_second(folder):
    table = read_table(folder, "train")
    made = training(folder)
    shown = {}
    for batch, values in enumerate(taken(made, 40)):
        for number, video in zip(made.plan(batch).numbers, values["video"], strict=True):
            second = table.key(number)[1]
            centre = FPS * (second - 900) + 1 + SAMPLING.frame_shift
            found = np.rint(video.mean((1, 2, 3)) / 4) - centre - np.array([-4, -2, 0, 2])
            shown.setdefault(second, set()).update(found.astype(int).tolist())
    assert all(drawn == {-1, 0} for drawn in shown.values())


def test_batches_depend_neither_on_processes_nor_on_resuming(folder):
    whole = taken(training(folder, bank=BANK), 5)
    parts = [taken(training(folder, DataShard(n, 2, 2, 3), BANK), 5) for n in range(2)]
    joined = [{name: np.concatenate([part[batch][name] for part in parts]) for name in whole[0]} for batch in range(5)]
    assert_equal_batches(whole, joined)
    resumed = training(folder, bank=BANK)
    resumed.restore(6)
    assert_equal_batches(whole[3:], taken(resumed, 2))
    assert any((first["video"] != later["video"]).any() for first, later in itertools.pairwise(whole))


def test_evaluation_visits_every_keyframe_once_without_cropping(folder):
    batches = list(evaluation(folder, bank=BANK))
    rows = {}
    for batch in batches:
        assert batch["video"].shape[2:4] == (32, 64)
        for place, (mask, index) in enumerate(zip(batch["mask"], batch["index"], strict=True)):
            if mask:
                rows[int(index)] = {name: value[place] for name, value in batch.items()}
    table = read_table(folder, "train")
    assert sorted(rows) == list(range(len(table)))
    for number, row in rows.items():
        second = table.key(number)[1]
        assert row["size"].tolist() == [32, 43]
        assert not row["video"][:, :, 43:].any()
        centre = FPS * (second - 900) + 2
        np.testing.assert_allclose(
            row["video"][:, :, :43].mean((1, 2, 3)) / 4, centre + np.array([-4, -2, 0, 2]), atol=0.3
        )
        wanted = [[0, 0.2, 0.4, 0.9], [0.5, 0.5, 0.9, 0.9]] if second == 902 else [[0, 0, 1, 1]]
        np.testing.assert_allclose(row["boxes"][row["box_mask"]] / [43, 32, 43, 32], wanted, atol=1e-5)
        assert row["bank"][row["slots"][0, 0], 0] == max(900, second - 2)


def test_evaluation_with_random_slots_is_repeatable(folder):
    made = [
        list(evaluation(folder, DataShard(batch_size=5, seed=seed), BANK, **{"bank.random_in_evaluation": True}))
        for seed in (1, 1, 2)
    ]
    assert_equal_batches(made[0], made[1])
    assert any((one["slots"] != two["slots"]).any() for one, two in zip(made[0], made[2], strict=True))


def test_frame_shift_0_reads_the_same_records(folder):
    early = next(iter(evaluation(folder, **{"clips.frame_shift": 0})))["video"].astype(int)
    late = next(iter(evaluation(folder)))["video"].astype(int)
    assert set(np.unique((late - early)[:, :, :, :43])) <= {3, 4, 5}


def test_frames_of_several_sizes_stand_in_their_own_buckets(tmp_path):
    write_inputs(tmp_path, videos=("tall",), size=(48, 36))
    write_frames(tmp_path / "frames", "wide", size=(36, 80))
    with open(tmp_path / "train.csv", "a") as file:
        file.write("wide,902,0,0,1,1,12,0\n")
    folder = prepared(tmp_path)
    batches = list(evaluation(folder))
    # Lowest frames first; a batch of both sizes holds either.
    assert [batch["video"].shape[2:4] for batch in batches] == [(64, 96), (64, 32)]
    assert batches[0]["size"].tolist() == [[32, 71], [43, 32]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips.fps": 30}, "prepared with fps = 4, the config asks for 30"),
        ({"clips.frame_shift": 2}, "config.clips.frame_shift: 2, expected 0"),
        ({"clips.jitter": 2}, "prepared with jitter = 1, the config asks for 2"),
        (
            {"data.box_buckets": (1,)},
            "^config.data.box_buckets: the largest is 1, .* a,0903 has 3 boxes; add 3",
        ),
        (
            {"data.bank_buckets": (2, 1), "bank": BANK},
            "^config.data.bank_buckets: the largest is 2, .* a,0902 has 4 rows of the bank in its window; add 4",
        ),
        ({"clips.short_side": (31, 40)}, "expected at least the crop's size 32"),
    ],
)
def test_settings_that_do_not_fit_the_records(folder, changes, message):
    with pytest.raises(UserError, match=message):
        training(folder, **changes)


def test_records_of_evaluation_are_not_for_training(tmp_path):
    folder = prepared(tmp_path, split="val")
    (folder / "keyframes-val.table.npz").rename(folder / "val.npz")
    with pytest.raises(DataError, match=r"keyframes-val.table.npz: no such file; run the preparation again"):
        read_table(folder, "val")
    (folder / "val.npz").rename(folder / "keyframes-val.table.npz")
    with pytest.raises(DataError, match="prepared with jitter = 0, the config asks for 1"):
        training(folder, **{"data.split": "val"})


def test_a_keyframe_without_people_is_not_for_training(tmp_path):
    folder = prepared(tmp_path, "--seconds", "proposals")
    assert len(read_table(folder, "train")) == 2
    prepare.main([*options(tmp_path, "all", "train", "--seconds", "all")])
    with pytest.raises(DataError, match=r"keyframe a,0900 of 'train' has no person to train on"):
        training(tmp_path / "all")


def test_a_table_of_other_records_is_noticed(tmp_path):
    folder = prepared(tmp_path)
    table = read_table(folder, "train")
    write_table(table_path(folder, "train"), dataclasses.replace(table, seconds=table.seconds[::-1].copy()))
    for made in (training(folder), evaluation(folder)):
        with pytest.raises(DataError, match=r"shows second 90\d, its table has [ab],090\d; run the preparation again"):
            list(itertools.islice(made, 2))


def test_tables_are_read_as_written_and_damage_is_named(folder, tmp_path):
    table = read_table(folder, "train")
    write_table(table_path(tmp_path, "train"), table)
    again = read_table(tmp_path, "train")
    for name in ("seconds", "sizes", "boxes", "labels", "people", "proposals", "videos"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    content = table_path(tmp_path, "train").read_bytes()
    assert content == table_path(folder, "train").read_bytes()
    for place in range(0, len(content), 97):
        table_path(tmp_path, "train").write_bytes(content[:place])
        with pytest.raises(DataError, match="damaged"):
            read_table(tmp_path, "train")
