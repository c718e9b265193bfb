"""From video files to search results and answers, with small models of random numbers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from snps3_runs import ANSWERS, TEXTS, make_runs, save, small

from vlm_jax import inference
from vlm_jax.errors import ConfigError, DataError
from vlm_jax.systems.snps3.captions import CaptionSettings, fixed_text
from vlm_jax.systems.snps3.config import visual_network
from vlm_jax.systems.snps3.index import VideoIndex
from vlm_jax.systems.snps3.predict import read_part
from vlm_jax.systems.snps3.transforms import evaluation_view
from vlm_jax.task import get_task
from vlm_jax.text.vocabulary import load
from vlm_jax.video import decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
    return make_runs(tmp_path_factory.mktemp("snps3"), root)


@pytest.fixture(scope="module")
def models(folder):
    return {head: inference.load(folder / head) for head in ("retrieval", "question_answering", "multiple_choice")}


def test_frames_are_those_that_evaluation_samples(folder, models):
    """Frames 7 and 22 are the middles of the halves of 30; the part from 1 to 2 s has frames 12 and 17."""
    film = folder / "videos/bunny.mp4"
    frames = decode.read_frames(film)
    np.testing.assert_array_equal(read_part(film, 0.0, None, 2), frames[[7, 22]])
    np.testing.assert_array_equal(read_part(film, 1.0, 2.0, 2), frames[[12, 17]])
    np.testing.assert_array_equal(read_part(film, 2.8, 9.0, 2), frames[[28, 29]])
    model = models["retrieval"]
    shown = evaluation_view(frames[[7, 22]], model.config.frames, strict=False)
    expected = encoders_of(model)["video"](model.variables, {"video": shown[None]})
    found = model.encode_video(film)
    np.testing.assert_allclose(found.clips, expected["clips"][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.tokens, expected["tokens"][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.encode_video(frames).clips, found.clips, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found.clips, axis=-1), 1, rtol=1e-5)
    assert model.encode_video(found) is found


def test_whole_frames_of_any_size(folder, tmp_path):
    """Every video is seen in its own size, without padding, so results depend on no other video."""
    config = small(folder, "retrieval")
    config.frames.form, config.frames.max_size = "whole", 64
    config.model.visual = visual_network("pvt", widths=(4, 4, 8, 8), depths=(1, 1, 1, 1), heads=(1, 1, 1, 1))
    save(tmp_path, config, 2)
    model = inference.load(tmp_path)
    film = folder / "videos/chaplin.mkv"
    shown = evaluation_view(read_part(film, 0, None, 2), config.frames, strict=False)
    assert shown.shape == (2, 64, 45, 3)
    batch = {"video": shown[None], "size": np.array([[64, 45]], np.int32)}
    expected = encoders_of(model)["video"](model.variables, batch)
    np.testing.assert_allclose(model.encode_video(film).tokens, expected["tokens"][0], rtol=1e-4, atol=1e-4)
    index = model.index(folder / "videos")
    np.testing.assert_allclose(index.tokens[1], expected["tokens"][0], rtol=1e-4, atol=1e-4)
    assert {match.video for match in model.search(TEXTS[:1], index, 3)[0]} == set(index.names)


def test_a_video_of_one_frame_is_an_image_repeated(folder, models, tmp_path):
    still = folder / "videos/still.mp4"
    found = models["retrieval"].encode_video(still)
    np.testing.assert_array_equal(read_part(still, 0, None, 2)[0], read_part(still, 0, None, 2)[1])
    assert np.isfinite(found.clips).all()
    with decode.av.open(str(tmp_path / "a.png"), "w", format="image2") as file:
        stream = file.add_stream("png", 1)
        stream.width, stream.height, stream.pix_fmt = 40, 56, "rgb24"
        frame = decode.av.VideoFrame.from_ndarray(read_part(still, 0, None, 1)[0], "rgb24")
        file.mux([*stream.encode(frame), *stream.encode()])
    image = models["retrieval"].encode_video(tmp_path / "a.png")
    np.testing.assert_allclose(image.clips, found.clips, rtol=1e-4, atol=1e-4)


@functools.cache
def encoders_of(model):
    return {name: jax.jit(encoder) for name, encoder in get_task(model.config).encoders.items()}


def scores(model, texts, videos):
    """Both levels of all pairs, one by one."""
    tokenizer, encoders = load(model.config.text.vocabulary), encoders_of(model)
    levels = np.zeros((2, len(texts), len(videos)))
    for row, text in enumerate(texts):
        ids, mask = fixed_text(text, CaptionSettings(tokenizer, model.config.text.length))
        words = {"text": ids[None], "text_mask": mask[None]}
        embedding = np.asarray(encoders["text"](model.variables, words)["text"])[0]
        for column, path in enumerate(videos):
            video = model.encode_video(path)
            levels[0, row, column] = np.log(np.exp(video.clips @ embedding).sum())
            matched = encoders["match"](model.variables, {**words, "tokens": video.tokens[None]})
            levels[1, row, column] = matched["scores"][0]
    return levels


def test_level_2_orders_what_level_1_shortlists(folder, models, tmp_path):
    (tmp_path / "videos").symlink_to(folder / "videos")
    names = ["bunny.mp4", "chaplin.mkv", "still.mp4"]
    first, second = scores(models["retrieval"], TEXTS, [folder / "videos" / name for name in names])
    for shortlist, levels in ((100, second), (2, second), (0, first)):
        found = models["retrieval"].search(TEXTS, folder / "videos", 2, shortlist=shortlist)
        for row, own in enumerate(found):
            allowed = np.argsort(-first[row])[: shortlist or 3]
            expected = sorted(allowed, key=lambda column: -levels[row, column])[:2]
            assert [match.video for match in own] == [names[column] for column in expected]
            np.testing.assert_allclose([match.score for match in own], levels[row, expected], rtol=1e-3, atol=1e-4)
            assert own[0].levels.keys() == {"level_1", "level_2"} if shortlist else {"level_1"}
    assert models["question_answering"].search(TEXTS[:1], folder / "videos")[0][0].levels.keys() == {"level_1"}


def test_an_index_is_kept_in_a_file(folder, models, tmp_path):
    model = models["retrieval"]
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    index = model.index([folder / "videos", tmp_path / "broken.mp4"])
    assert index.skipped == [(str(tmp_path / "broken.mp4"), "unreadable", index.skipped[0][2])]
    index.save(tmp_path / "index.npz")
    again = VideoIndex.open(tmp_path / "index.npz")
    assert (again.names, again.skipped) == (["bunny.mp4", "chaplin.mkv", "still.mp4"], index.skipped)
    assert model.search(TEXTS, again) == model.search(TEXTS, folder / "videos")
    with pytest.warns(UserWarning, match=r"broken\.mp4: unreadable.*; left out"):
        found = model.search(TEXTS, [folder / "videos", tmp_path / "broken.mp4"])
    assert found == model.search(TEXTS, again)
    with pytest.raises(DataError, match="index: made by another model"):
        models["multiple_choice"].search(TEXTS, dataclasses.replace(again, made_by="other"))
    (tmp_path / "index.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"index\.npz: no index of videos"):
        VideoIndex.open(tmp_path / "index.npz")


def test_options_are_ordered_by_level_2(folder, models):
    film, model = folder / "videos/bunny.mp4", models["multiple_choice"]
    found = model.answer(film, "what happens?", TEXTS)
    expected = scores(model, TEXTS, [film])[1, :, 0]
    assert [answer.text for answer in found] == [TEXTS[number] for number in np.argsort(-expected)]
    np.testing.assert_allclose([answer.score for answer in found], np.sort(expected)[::-1], rtol=1e-3, atol=1e-4)
    part = model.answer(film, "", TEXTS, start=1.0, end=2.0)
    assert sorted(answer.text for answer in part) == sorted(TEXTS)
    assert part != found


def test_open_questions_have_the_answers_of_the_vocabulary(folder, models):
    found = models["question_answering"].answer(folder / "videos/bunny.mp4", "what colour is the star?", top_k=2)
    assert len(found) == 2
    assert {answer.text for answer in found} < set(ANSWERS)
    assert 1 > found[0].score >= found[1].score > 0
    every = models["question_answering"].answer(folder / "videos/bunny.mp4", "what colour is the star?")
    assert sum(answer.score for answer in every) == pytest.approx(1, rel=1e-5)


def test_unknown_words_are_a_warning_and_finite(folder, models):
    with pytest.warns(UserWarning, match=r"search: no word of '\u9f8d \u9f8d' is in .*vocab\.txt"):
        found = models["retrieval"].search(["\u9f8d \u9f8d"], folder / "videos")
    assert np.isfinite([match.score for match in found[0]]).all()


def test_what_cannot_be_asked_is_one_line(folder, models, tmp_path):
    film = folder / "videos/bunny.mp4"
    retrieval, asking = models["retrieval"], models["question_answering"]
    with pytest.raises(ConfigError, match="a run of retrieval has no vocabulary of answers; give options"):
        retrieval.answer(film, "what?")
    with pytest.raises(ConfigError, match="question_answering does not compare options; leave them out"):
        asking.answer(film, "what?", ["a", "b"])
    with pytest.raises(DataError, match="question: empty"):
        asking.answer(film, " ")
    with pytest.raises(DataError, match=r"options: expected a list of one or more texts, found \[\]"):
        retrieval.answer(film, "what?", [])
    with pytest.raises(DataError, match="options: text 2 is empty"):
        retrieval.answer(film, "what?", ["a", ""])
    with pytest.raises(DataError, match="search: text 1 is empty"):
        retrieval.search([""], folder / "videos")
    with pytest.raises(DataError, match="no videos"):
        retrieval.search(["a"], tmp_path)
    with pytest.raises(DataError, match=r"none of 1 videos can be read; .*absent\.mp4: missing"):
        retrieval.search(["a"], [tmp_path / "absent.mp4"])
    with pytest.raises(ConfigError, match="top_k and shortlist"):
        retrieval.search(["a"], folder / "videos", 0)
    with pytest.raises(DataError, match=r"bunny\.mp4: no part begins at 7 s; 30 frames at 10 per second"):
        retrieval.encode_video(film, start=7)
    with pytest.raises(DataError, match=r"bunny\.mp4: start is 2 s and end 1 s, expected"):
        retrieval.encode_video(film, start=2, end=1)
    with pytest.raises(ValueError, match="expected a list of texts, found one string"):
        retrieval.encode_text("a dog")
    with pytest.raises(decode.VideoError, match=r"absent\.mp4: missing"):
        retrieval.encode_video(tmp_path / "absent.mp4")


def test_a_list_of_questions_has_a_line_each(folder, models, tmp_path):
    """Questions about the same part share its encoding; what cannot be read or asked is listed."""
    film = str(folder / "videos/bunny.mp4")
    found = models["multiple_choice"].predict(
        [
            {"qid": "a", "video": film, "question": "what?", "options": TEXTS},
            {"qid": "b", "video": film, "query": "what?", "options": TEXTS[:1], "start": 1.0, "end": 2.0},
            {"qid": "c", "video": str(tmp_path / "absent.mp4"), "options": TEXTS},
            {"qid": "d", "video": film, "options": []},
            {"qid": "e", "video": film, "options": TEXTS, "start": 9.0},
        ]
    )
    first, second = found.lines
    expected = models["multiple_choice"].answer(film, "what?", TEXTS)
    assert [(each["answer"], each["score"]) for each in first["best"]] == expected
    assert TEXTS[first["prediction"]] == expected[0].text
    assert (second["qid"], second["prediction"], second["start"], second["end"]) == ("b", 0, 1.0, 2.0)
    assert [(qid, reason) for qid, reason, _ in found.missing] == [
        ("c", "video is missing"),
        ("d", "cannot be asked"),
        ("e", "cannot be asked"),
    ]
    open_question = {"video": film, "question": "what colour?"}
    (line,) = models["question_answering"].predict([open_question], top_k=2).lines
    assert line["prediction"] == line["best"][0]["answer"]
    assert len(line["best"]) == 2


def test_another_vocabulary_is_one_line(folder, tmp_path):
    (tmp_path / "vocab.txt").write_text((folder / "vocab.txt").read_text() + "more\n")
    other = inference.load(folder / "retrieval", vocabulary=tmp_path / "vocab.txt")
    with pytest.raises(ConfigError, match=r"config\.text\.vocabulary: .*vocab\.txt has \d+ tokens, the model \d+"):
        other.encode_text(["a"])
    none = inference.load(folder / "retrieval", overrides=["--config.text.vocabulary="])
    with pytest.raises(ConfigError, match=r"config\.text\.vocabulary: empty"):
        none.encode_text(["a"])
