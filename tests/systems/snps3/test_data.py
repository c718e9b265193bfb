"""Pipelines of training and evaluation on small records."""

import json

import numpy as np
import pytest
from caption_files import CAPTIONS, WORDS, make_config, prepared, write_image, write_lines
from ml_collections import ConfigDict
from record_files import assert_equal_batches, taken

from vlm_jax.errors import ConfigError, DataError, UserError
from vlm_jax.systems.snps3 import data
from vlm_jax.systems.snps3.table import read_table, table_path, write_table
from vlm_jax.systems.snps3.task import batch_specs
from vlm_jax.types import DataShard

SHARD = DataShard(batch_size=2, seed=3)
HEADS = {
    "pretraining": "captions",
    "retrieval": "captions",
    "question_answering": "questions",
    "multiple_choice": "choices",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with a data set of every use, and `whole`, in which videos are stored as they are."""
    folder = tmp_path_factory.mktemp("items")
    for use in ("captions", "questions", "choices"):
        prepared(folder, use=use)
    prepared(folder, "--format", "video", output="whole", rows=CAPTIONS[:4])
    return folder


def training(folder, head, shard=SHARD, names=(), **changes):
    directories = [folder / name for name in names or (HEADS[head],)]
    return data.train_pipeline(make_config(folder, head, *directories, **changes), shard)


def evaluation(folder, kind, shard=SHARD, name="", head="retrieval", **changes):
    name = name or {**data.EVALUATED, "loss": HEADS[head]}[kind]
    wanted = ConfigDict({"kind": kind, "directory": str(folder / name), "split": "train"})
    return data.evaluation_pipeline(make_config(folder, head, **changes), wanted, shard)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("form", ["crop", "whole"])
@pytest.mark.parametrize("strict", [False, True])
def test_training_batches_are_those_of_the_task(folder, head, form, strict):
    changes = {"frames.form": form, "strict": strict}
    batch = next(iter(training(folder, head, **changes)))
    config = make_config(folder, head, **changes)
    config.batch_size = 2
    (specs,) = batch_specs(config).values()
    expected = {name: (spec.shape, np.dtype(spec.dtype)) for name, spec in specs.items()}
    if head == "question_answering":
        expected["labels"] = ((2, 2), np.dtype(np.int32))  # a question of the data has two answers
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == expected


def words_of(ids, mask):
    return " ".join(WORDS[token] for token in ids[: int(mask.sum())][1:-1])


def test_pretraining_pairs_videos_with_captions(folder):
    table = read_table(folder / "captions", "train")
    made = training(folder, "pretraining", block=4)
    seen, false = {}, set()
    for number, batch in enumerate(taken(made, 60)):
        for row, item in enumerate(made.plan(number).numbers.tolist()):
            caption = words_of(batch["raw"][row], batch["raw_mask"][row])
            assert caption in table.captions(item)
            seen.setdefault(item, set()).add(caption)
            other = words_of(batch["false"][row], batch["false_mask"][row])
            own = [table.captions(n) for n in range(len(table)) if table.videos[n] == table.videos[item]]
            assert other not in {text for texts in own for text in texts} - {"the dog", "a red dog"}
            false.add(other)
            grey = batch["video"][row].astype(int)
            assert grey.shape == (2, 16, 16, 3)
    assert all(found == set(table.captions(item)) for item, found in seen.items())
    assert len(seen) == len(table)
    assert {"", "blue", "green cat"} <= false


def test_an_image_is_one_frame_repeated_and_a_video_of_one_frame_works(folder):
    table = read_table(folder / "captions", "train")
    batches = list(evaluation(folder, "retrieval"))
    frames = {int(i): video for batch in batches for i, video in zip(batch["index"], batch["video"], strict=True)}
    for name, grey in (("small.jpg", 50), ("tall.png", 150), ("one", 0)):
        video = frames[list(table.videos).index(name)]
        assert (video == video[:1]).all()
        assert np.abs(video.astype(int) - grey).max() <= 2
    # 'frames' has the values 10, 20, 90 and 100 in the order of their numbers; 2 clips show the first and third.
    found = frames[list(table.videos).index("frames")].mean((1, 2, 3))
    np.testing.assert_allclose(found, [10, 90], atol=1)


@pytest.mark.parametrize("name", ["captions", "whole"])
def test_parts_of_videos_show_their_frames(folder, name):
    table = read_table(folder / name, "train")
    batches = list(evaluation(folder, "retrieval", name=name))
    shown = {}
    for batch in batches:
        for number, video in zip(batch["index"].tolist(), batch["video"], strict=True):
            if number < len(table):
                shown[table.part(number)] = np.rint(video.mean((1, 2, 3)) / 8).astype(int).tolist()
    assert shown["a.mp4", 0.0, 2.0] == [1, 5]
    assert shown["a.mp4", 1.0, 3.0] == [5, 9]
    assert shown["b", None, None] == [1, 5]


def test_training_draws_frames_of_the_part(folder):
    table = read_table(folder / "whole", "train")
    changes = {"frames.augment.probability": 0.0}
    made = training(folder, "retrieval", names=["whole"], **changes)
    shown = {}
    for number, batch in enumerate(taken(made, 40)):
        for item, video in zip(made.plan(number).numbers.tolist(), batch["video"], strict=True):
            found = np.rint(video.mean((1, 2, 3)) / 8).astype(int).tolist()
            shown.setdefault(table.part(item), set()).add(tuple(found))
    # Halves of 4 frames; the last one of each is never drawn.
    assert shown["a.mp4", 1.0, 3.0] == {(first, second) for first in (4, 5, 6) for second in (8, 9, 10)}


@pytest.mark.parametrize("head", HEADS)
def test_batches_depend_neither_on_processes_nor_on_resuming(folder, head):
    changes = {"frames.form": "whole"} if head == "retrieval" else {}
    whole = taken(training(folder, head, **changes), 5)
    parts = [taken(training(folder, head, DataShard(n, 2, 2, 3), **changes), 5) for n in range(2)]
    joined = [{name: np.concatenate([part[batch][name] for part in parts]) for name in whole[0]} for batch in range(5)]
    assert_equal_batches(whole, joined)
    resumed = training(folder, head, **changes)
    resumed.restore(6)
    assert_equal_batches(whole[3:], taken(resumed, 2))
    other = taken(training(folder, head, DataShard(batch_size=2, seed=4), **changes), 5)
    assert any((one["video"] != two["video"]).any() for one, two in zip(whole, other, strict=True))


def test_masks_and_windows_differ_from_epoch_to_epoch(folder):
    made = training(folder, "pretraining", **{"text.length": 4})
    masked = {}
    for number, batch in enumerate(taken(made, 60)):
        for item, raw, ids in zip(made.plan(number).numbers.tolist(), batch["raw"], batch["masked"], strict=True):
            masked.setdefault(item, set()).add((tuple(raw.tolist()), tuple(ids.tolist())))
    assert max(len({raw for raw, _ in found}) for found in masked.values()) >= 3  # 'a red dog runs' has three windows
    assert max(map(len, masked.values())) > 4


def test_questions_share_records_and_need_an_answer(folder):
    table = read_table(folder / "questions", "train")
    assert (len(table), len(table.videos)) == (4, 2)
    made = training(folder, "question_answering")
    assert made.epoch_examples() == 2  # three of four questions have an answer, a batch has two
    found = {}
    for batch in taken(made, 20):
        for ids, mask, labels in zip(batch["text"], batch["text_mask"], batch["labels"], strict=True):
            found[words_of(ids, mask)] = labels.tolist()
    assert found == {"the dog ?": [0, -1], "the cat ?": [1, -1], "the red dog ?": [3, 0]}


def test_evaluation_visits_every_question_once(folder):
    table = read_table(folder / "questions", "train")
    batches = list(evaluation(folder, "answers", head="question_answering", shard=DataShard(batch_size=3)))
    kept = [
        (int(n), words_of(*pair))
        for b in batches
        for n, *pair in zip(b["index"], b["text"], b["text_mask"], strict=True)
        if n < 4
    ]
    assert sorted(kept) == [(n, table.captions(n)[0]) for n in range(4)]
    assert np.concatenate([batch["mask"] for batch in batches]).tolist() == [1] * 4 + [0] * 2
    videos = {int(n): video for batch in batches for n, video in zip(batch["index"], batch["video"], strict=True)}
    np.testing.assert_array_equal(videos[0], videos[1])  # two questions about one video


def test_choices_have_fewer_options_than_expected(folder):
    (batch, *_) = evaluation(folder, "choices", **{"data.options": 5}, shard=DataShard(batch_size=3))
    assert batch["text"].shape == (3, 5, 8)
    assert batch["option_mask"].sum(1).tolist() == [3, 2, 2]
    assert (batch["text_mask"].any(-1) == batch["option_mask"]).all()
    assert "label" not in batch
    assert training(folder, "multiple_choice").epoch_examples() == 2  # one of three has no answer
    labels = {int(label) for values in taken(training(folder, "multiple_choice"), 4) for label in values["label"]}
    assert labels == {0, 1}
    with pytest.raises(DataError, match=r"config.data.options: 2, but a question of the data has 3"):
        training(folder, "multiple_choice", **{"data.options": 2})


def test_validation_draws_the_same_every_time(folder):
    first, second = (list(evaluation(folder, "loss", head="pretraining")) for _ in range(2))
    assert_equal_batches(first, second)
    assert {"raw", "raw_mask", "masked", "labels", "false", "false_mask", "mask", "index"} <= set(first[0])
    assert first[0]["raw_mask"].shape == (2, 8)
    assert first[0]["mask"].shape == (2,)
    joined = [list(evaluation(folder, "loss", DataShard(n, 2, 2), head="pretraining")) for n in range(2)]
    assert_equal_batches(
        first,
        [{name: np.concatenate([part[n][name] for part in joined]) for name in first[0]} for n in range(len(first))],
    )


def test_whole_frames_stand_in_the_corner_of_their_bucket(folder):
    table = read_table(folder / "captions", "train")
    made = evaluation(folder, "retrieval", **{"frames.form": "whole"})
    shapes = set()
    for batch in made:
        shapes.add(batch["video"].shape[2:4])
        for number, size, video in zip(batch["index"].tolist(), batch["size"].tolist(), batch["video"], strict=True):
            if number < len(table):
                height, width = table.sizes[number].tolist()
                assert size == [32 * height // max(height, width), 32 * width // max(height, width)]
                assert not video[:, size[0] :].any()
                assert not video[:, :, size[1] :].any()
    # Frequent heights and widths have buckets of their own.
    assert shapes == {(24, 32), (32, 19)}
    with pytest.raises(DataError, match=r"config.frames.heights: the largest is 24, .* have 32 pixels; add 32"):
        training(folder, "retrieval", **{"frames.form": "whole", "frames.heights": (24,)})
    small = next(
        iter(training(folder, "retrieval", names=["whole"], **{"frames.form": "whole", "frames.heights": (24, 32)}))
    )
    assert small["video"].shape == (2, 2, 24, 32, 3)


def test_sources_are_mixed_by_weight_and_false_captions_stay_within_theirs(folder, tmp_path):
    for number in range(4):
        write_image(tmp_path / "media" / f"{number}.jpg", value=200)
    rows = [{"caption": "one two", "clip_name": f"{n}.jpg", "type": "image"} for n in range(4)]
    images = prepared(tmp_path, rows=rows)
    config = make_config(folder, "pretraining", folder / "captions", images)
    config.data.weights = (1, 3)
    made = data.train_pipeline(config, DataShard(batch_size=4, seed=1))
    own = len(read_table(folder / "captions", "train"))
    for number, batch in enumerate(taken(made, 12)):
        numbers = made.plan(number).numbers
        assert (numbers >= own).sum() == 3
        for item, false, mask in zip(numbers, batch["false"], batch["false_mask"], strict=True):
            other = words_of(false, mask)
            assert (other == "one two") == (item >= own) or other.count("[UNK]") == 4  # the dummy, after three draws
    config.data.weights = (1,)
    with pytest.raises(DataError, match="weights"):
        data.train_pipeline(config, DataShard(batch_size=4))


def test_significant_words_are_masked_and_chosen(folder):
    ranks = [0 if word in ("dog", "cat", "runs") else 15 for word in WORDS]
    path = write_lines(folder / "ranks.json", [{"name": list(WORDS), "rank": ranks}])
    (folder / "groups.json").write_text(json.dumps([[] for _ in WORDS]))
    changes = {"words.ranks": str(path), "words.groups": str(folder / "groups.json"), "words.top": 3}
    changes |= {"words.matching": "after", "words.chosen": 2}
    for batch in taken(training(folder, "pretraining", **changes), 20):
        assert batch["words"].shape == (2, 2)
        for raw, labels, words in zip(batch["raw"], batch["labels"], batch["words"], strict=True):
            masked = {WORDS[token] for token in labels[labels >= 0]}
            known = {WORDS[token] for token in raw} & {"dog", "cat", "runs"}
            if known:
                assert masked <= known
                assert {WORDS[token] for token in raw[words]} <= known
    # Without significant words, any word is chosen; an empty caption has its first positions.
    plain = taken(training(folder, "pretraining", **changes, **{"words.masking": False}), 20)
    assert any((batch["labels"] == WORDS.index("a")).any() for batch in plain)


def test_what_does_not_fit_is_one_line(folder, tmp_path):
    for head, name, message in (
        ("question_answering", "captions", "prepared with use = 'captions', the config asks for 'questions'"),
        ("pretraining", "choices", "prepared with use = 'choices', the config asks for 'captions'"),
    ):
        with pytest.raises(DataError, match=message):
            training(folder, head, names=[name])
    with pytest.raises(ConfigError, match=r"config.data.directories: empty"):
        data.train_pipeline(make_config(folder, "retrieval"), SHARD)
    with pytest.raises(DataError, match=r"no protocol.json there"):
        training(tmp_path, "retrieval")
    with pytest.raises(DataError, match="prepared with num_answers = 4, the config asks for 7"):
        training(folder, "question_answering", **{"model.num_answers": 7})
    (folder / "other.json").write_text('["red", "blue", "one", "three"]')
    with pytest.raises(DataError, match="prepared with answers_sha256"):
        training(folder, "question_answering", **{"answers.vocabulary": str(folder / "other.json")})
    training(folder, "question_answering", **{"answers.vocabulary": str(folder / "answers.json")})
    with pytest.raises(ConfigError, match=r"config.frames.short_side: \(10, 24\), expected from the crop's size 16"):
        training(folder, "retrieval", **{"frames.short_side": (10, 24)})
    with pytest.raises(ConfigError, match=r"config.frames.evaluation_short_side"):
        evaluation(folder, "retrieval", **{"frames.evaluation_short_side": 10})
    with pytest.raises(UserError, match=r"none.txt"):
        training(folder, "retrieval", **{"text.vocabulary": str(tmp_path / "none.txt")})


def test_a_table_of_other_records_is_found(tmp_path):
    made = prepared(tmp_path, rows=CAPTIONS[:4])
    prepared(tmp_path, output="two", rows=CAPTIONS[:3])
    write_table(table_path(made, "train"), read_table(tmp_path / "two", "train"))
    with pytest.raises(DataError, match=r"has 2 records, protocol.json says 3"):
        training(tmp_path, "retrieval", names=["captions"])
