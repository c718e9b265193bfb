"""Published annotation files become JSON lines of SNP-S3."""

import json
import zlib

import pytest

from data_prep.commands import run_command
from data_prep.snps3 import published
from vlm_jax.errors import DataError

COCO = {
    "images": [{"id": 7, "file_name": "COCO_train2014_7.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 7, "caption": " A man\nrides. "},
        {"id": 2, "image_id": 8, "caption": "no such image"},
        {"id": 3, "image_id": 7, "caption": " "},
        {"id": 4, "image_id": 7},
        None,
    ],
}
KARPATHY = {
    "images": [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": split, "sentid": 1}, {"raw": 3}]}
        for split in ("train", "restval", "val", "test")
    ]
}
VG = [
    {"id": 1, "regions": [{"region_id": 5, "image_id": 1, "phrase": "a clock", "x": 3, "y": 4}, {"region_id": 6}]},
    {"id": 2, "regions": []},
    [],
]
MSRVTT = {
    "videos": [
        {"video_id": f"video{number}", "split": split} for number, split in enumerate(("train", "validate", "test"))
    ],
    "sentences": [
        {"sen_id": number, "video_id": f"video{number % 3}", "caption": f"caption {number}"} for number in range(6)
    ],
}
DIDEMO = [
    {"annotation_id": 1, "video": "a@N00_1.avi", "description": "a dog runs ", "times": [[0, 0]]},
    {"annotation_id": 2, "video": "b.mov", "description": "rain", "times": [[1, 2]]},
    {"annotation_id": 3, "video": "a@N00_1.avi", "description": "it barks", "times": [[2, 2]]},
    {"annotation_id": 4, "video": "b.mov"},
]
QUESTIONS = [
    {"answer": "couch", "category_id": 14, "id": 158581, "question": "what is a man sitting on?", "video_id": 6513},
    {"answer": "", "id": 2, "question": "what?", "video_id": 6513},
    {"answer": "x", "id": 3, "question": "what?"},
]


def run(path, name, *more):
    output = path.parent / "made.jsonl"
    words = ["annotations", "--set", name, "--source", str(path), "--output", str(output), *map(str, more)]
    run_command(words, "", lambda _: None, published.add_commands)
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def skipped(path):
    return (path.parent / "made.skipped.csv").read_text().splitlines()


def test_coco(write, capsys):
    path = write("captions_train2014.json", COCO)
    assert run(path, "coco") == [
        {"clip_name": "COCO_train2014_7.jpg", "caption": "A man rides.", "type": "image", "sen_id": 1}
    ]
    assert "1 lines on 1 files, 4 skipped" in capsys.readouterr().out
    reasons = [line.split(",")[:2] for line in skipped(path)[1:]]
    assert reasons == [
        ["annotation 1", "no such image"],
        ["annotation 2", "an empty or missing text"],
        ["annotation 3", "not in the expected form"],
        ["annotation 4", "not in the expected form"],
    ]
    with pytest.raises(DataError, match="has no splits; only Karpathy's"):
        run(path, "coco", "--split", "train")


def test_coco_by_karpathy(write):
    path = write("dataset_coco.json", KARPATHY)
    assert [row["clip_name"] for row in run(path, "coco", "--split", "train")] == ["train.jpg", "restval.jpg"]
    assert [row["caption"] for row in run(path, "coco", "--split", "test")] == ["test"]
    assert len(run(path, "coco")) == 4


def test_visual_genome(write):
    path = write("region_descriptions.json", VG)
    assert run(path, "vg") == [{"clip_name": "1.jpg", "caption": "a clock", "type": "image", "sen_id": 5}]
    assert len(skipped(path)) == 3


def test_conceptual_captions(write):
    path = write("Train_GCC.tsv", "a man\thttp://a/b.jpg\nno address\nsea, sky \thttp://c\n")
    assert [(row["clip_name"], row["caption"]) for row in run(path, "cc3m")] == [
        ("0000000.jpg", "a man"),
        ("0000002.jpg", "sea, sky"),
    ]
    crc = zlib.crc32(b"http://a/b.jpg")
    assert run(path, "cc3m", "--names", "training/{crc}")[0]["clip_name"] == f"training/{crc}"


def test_webvid(write):
    path = write(
        "results_2M_train.csv",
        'videoid,contentUrl,duration,page_dir,name\n21,http://x,PT0M1S,000001_000050,"Sea, waves"\n22,http://y,,7,\n23\n',
    )
    assert run(path, "webvid") == [
        {"clip_name": "000001_000050/21.mp4", "caption": "Sea, waves", "type": "video", "sen_id": 0}
    ]
    assert run(path, "webvid", "--names", "{videoid}.mp4")[0]["clip_name"] == "21.mp4"
    assert len(skipped(path)) == 3
    with pytest.raises(DataError, match=r"no column 'page_dir'; it has videoid, name"):
        run(write("other.csv", "videoid,name\n1,a\n"), "webvid")


def test_howto100m(write):
    said = {"abc": {"start": [0.5, 4, "x"], "end": [4.0, 4, 9], "text": ["cut it", "never", "b"]}, "d": None}
    path = write("caption.json", said)
    assert run(path, "howto100m") == [
        {"clip_name": "abc.mp4", "caption": "cut it", "type": "video", "sen_id": 0, "start": 0.5, "end": 4.0}
    ]
    assert len(skipped(path)) == 4


def test_howto100m_as_csv(write):
    expected = {"caption": "cut it", "type": "video", "sen_id": 0, "start": 0.5, "end": 4.0}
    path = write("abc.csv", "start,end,text\n0.5,4,cut it\n4,4,never\n,,\n")
    assert run(path, "howto100m") == [{"clip_name": "abc.mp4", **expected}]
    assert len(skipped(path)) == 3
    path = write("queries.csv", "video_path,start,end,text\nd.e.avi,0.5,4,cut it\n")
    assert run(path, "howto100m", "--names", "{video}.avi") == [{"clip_name": "d.e.avi", **expected}]


def test_msrvtt_splits(write):
    path = write("train_val_videodatainfo.json", MSRVTT)
    for split, numbers in {"train": [0, 3], "val": [1, 4], "test": [2, 5], "7k": [0, 1, 3, 4], "": range(6)}.items():
        found = run(path, "msrvtt", *(("--split", split) if split else ()))
        assert [row["sen_id"] for row in found] == list(numbers)
    assert found[4]["clip_name"] == "video1.mp4"
    assert found[4]["caption"] == "caption 4"
    test = write("MSRVTT_JSFUSION_test.csv", "key,vid_key,video_id,sentence\nret0,msr1,video1,a test\n")
    train = run(path, "msrvtt", "--exclude", test)
    assert {row["clip_name"] for row in train} == {"video0.mp4", "video2.mp4"}, "as MSRVTT_train.9k.csv"
    (row,) = run(test, "msrvtt")
    assert (row["clip_name"], row["caption"]) == ("video1.mp4", "a test")
    listed = write("MSRVTT_train.9k.csv", "video_id\nvideo2\n")
    assert {row["clip_name"] for row in run(path, "msrvtt", "--videos", listed)} == {"video2.mp4"}


def test_msrvtt_in_the_form_of_coco(write):
    path = write("MSR_VTT.json", {"annotations": [{"image_id": "video9", "caption": "a", "id": 4}], "images": []})
    assert run(path, "msrvtt") == [{"clip_name": "video9.mp4", "caption": "a", "type": "video", "sen_id": 4}]
    with pytest.raises(DataError, match="has no splits; choose by --videos"):
        run(path, "msrvtt", "--split", "7k")


def test_msvd(write):
    text = "# header\n\nmv89psg6zh4_33_46 A bird.\nmv89psg6zh4_33_46 A parrot\nlone_1_2\nno name\nb.c_1_2 A cat\n"
    path = write("AllVideoDescriptions.txt", text)
    found = run(path, "msvd")
    assert [(row["clip_name"], row["sen_id"]) for row in found] == [
        ("mv89psg6zh4_33_46.avi", 0),
        ("mv89psg6zh4_33_46.avi", 1),
        ("b.c_1_2.avi", 0),
    ]
    listed = write("train_list.txt", "b.c_1_2\n")
    assert [row["caption"] for row in run(path, "msvd", "--videos", listed)] == ["A cat"]


def test_didemo_has_one_paragraph_per_video(write):
    path = write("train_data.json", DIDEMO)
    assert [(row["clip_name"], row["caption"]) for row in run(path, "didemo")] == [
        ("a@N00_1.avi", "a dog runs it barks"),
        ("b.mov", "rain"),
    ]
    assert skipped(path)[1].startswith("description 3,no description")


def test_questions(write):
    path = write("train_qa.json", QUESTIONS)
    question = {"qid": 158581, "caption": "what is a man sitting on?", "type": "video", "label": "couch"}
    assert run(path, "msrvtt_qa") == [{"clip_name": "video6513.mp4", **question}]
    assert len(skipped(path)) == 3
    assert run(path, "msvd_qa")[0]["clip_name"] == "vid6513.avi"
    mapping = write("youtube_mapping.txt", "mv89psg6zh4_33_46 vid6513\n")
    assert run(path, "msvd_qa", "--mapping", mapping)[0]["clip_name"] == "mv89psg6zh4_33_46.avi"
    mapping.write_text("mv89psg6zh4_33_46 vid1\n")
    with pytest.raises(DataError, match="no annotation of msvd_qa is left; question 0: video without a line"):
        run(path, "msvd_qa", "--mapping", mapping)
    mapping.write_text("one two three\n")
    with pytest.raises(DataError, match="expected lines 'VIDEO vidNUMBER'"):
        run(path, "msvd_qa", "--mapping", mapping)


def test_questions_as_json_lines(write):
    path = write("train.jsonl", '{"question": "who?", "answer": "man", "video_id": "video7"}\nbroken\n')
    assert run(path, "msrvtt_qa")[0] == {
        "clip_name": "video7.mp4",
        "qid": 0,
        "caption": "who?",
        "type": "video",
        "label": "man",
    }
    assert len(skipped(path)) == 2


def test_choices(write):
    options = ["a", "b", "c", "d", "e"]
    rows = [
        {"qid": "q0", "clip_name": "video7", "answer": 2, "options": options},
        {"qid": "q1", "clip_name": "video8", "options": options},
        {"qid": "q2", "clip_name": "video8", "answer": 5, "options": options},
        {"qid": "q3", "clip_name": "video8", "answer": 0, "options": "a"},
    ]
    path = write("msrvtt_mc_test.jsonl", "\n".join(map(json.dumps, rows)))
    found = run(path, "msrvtt_mc")
    assert found[0] == {
        "clip_name": "video7.mp4",
        "qid": "q0",
        "title": "",
        "options": options,
        "answer": "2",
        "type": "video",
    }
    assert "answer" not in found[1]
    assert [line.split(",")[1] for line in skipped(path)[1:]] == [
        "answer is none of the options",
        "options are no list of texts",
    ]


@pytest.mark.parametrize("name", published.SETS)
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "[[[", '{"a": [1]}', "null", "\ufeff3"])
def test_files_without_annotations(write, name, content):
    path = write("file.json", content)
    with pytest.raises(DataError) as caught:
        run(path, name)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (path.parent / "made.jsonl").exists()


@pytest.mark.parametrize("name", published.SETS)
def test_files_that_cannot_be_read(tmp_path, name):
    path = tmp_path / "file.json"
    with pytest.raises(DataError, match="no such file"):
        run(path, name)
    path.write_bytes(b"\xff\xfe\xfa\x00")
    with pytest.raises(DataError, match=r"file\.json"):
        run(path, name)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--split", "9k"), "--split: '9k', expected train or val or test or 7k for msrvtt"),
        (("--mapping", "x"), "--mapping: only msvd_qa needs one"),
        (("--names", "{vid}.mp4"), "--names: '{vid}.mp4', expected a form with video in braces"),
        (("--names", "{0}"), "expected a form with video in braces"),
        (("--names", "{"), "expected a form with video in braces"),
        (("--videos", "empty.txt"), "expected one name of a video per line, found none"),
    ],
)
def test_options_that_do_not_fit(write, monkeypatch, more, message):
    path = write("a.json", MSRVTT)
    write("empty.txt", "\n")
    monkeypatch.chdir(path.parent)
    with pytest.raises(DataError, match=message):
        run(path, "msrvtt", *more)
    assert not (path.parent / "made.jsonl").exists()


def test_it_is_a_command_of_the_preparation(write):
    from data_prep.snps3 import prepare

    path = write("MSR_VTT.json", {"annotations": [{"image_id": "video9", "caption": "a", "id": 4}]})
    output = path.parent / "out.jsonl"
    prepare.main(["annotations", "--set", "msrvtt", "--source", str(path), "--output", str(output)])
    assert output.exists()
