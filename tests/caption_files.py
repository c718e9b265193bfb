"""Small videos, images, annotations and vocabularies, for tests of snps3."""

import json

import numpy as np
import tensorflow as tf

from data_prep.snps3 import prepare
from vlm_jax.systems.snps3.config import default_config
from vlm_jax.video.write import write_video

RATE = 4
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a red blue green dog cat runs sits one two ? the".split())


def write_numbered(path, count=12, size=(36, 48), rate=RATE):
    """Write a video whose grey value is 8 times the number of the frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    greys = 8 * np.arange(count, dtype=np.uint8)[:, None, None, None]
    write_video(path, np.broadcast_to(greys, (count, *size, 3)).copy(), rate, lossless=True)


def write_image(path, size=(30, 40), value=100, form="jpg"):
    """Write a grey image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_png if form == "png" else tf.io.encode_jpeg
    path.write_bytes(encode(np.full((*size, 3), value, np.uint8)).numpy())


def write_lines(path, rows):
    """Write one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_media(folder):
    """Write three videos, a folder of frames and two images below `folder/media`."""
    media = folder / "media"
    for name, count in (("a", 12), ("b", 8), ("one", 1)):
        write_numbered(media / f"{name}.mp4", count)
    for number in (10, 9, 2, 1):
        write_image(media / "frames" / f"frame_{number}.jpg", value=10 * number)
    write_image(media / "small.jpg", (12, 20), 50)
    write_image(media / "tall.png", (40, 24), 150, "png")
    return media


CAPTIONS = [
    {"caption": "a red dog runs", "clip_name": "a.mp4", "sen_id": 1, "start": 0.0, "end": 2.0},
    {"caption": "the dog", "clip_name": "a.mp4", "sen_id": 0, "start": 0.0, "end": 2.0},
    {"caption": "a cat sits", "clip_name": "b", "sen_id": 0},
    {"caption": "a red dog", "clip_name": "a.mp4", "sen_id": 2, "start": 1.0, "end": 3.0},
    {"caption": "", "clip_name": "one", "sen_id": 0},
    {"caption": "blue", "clip_name": "frames", "sen_id": 0},
    {"caption": "the dog", "clip_name": "small.jpg", "type": "image", "sen_id": 0},
    {"caption": "green cat", "clip_name": "tall.png", "type": "image", "sen_id": 0},
]
QUESTIONS = [
    {"caption": "the dog ?", "clip_name": "a.mp4", "label": "red", "qid": "q0"},
    {"caption": "the cat ?", "clip_name": "b.mp4", "label": "blue", "qid": "q1"},
    {"caption": "the red dog ?", "clip_name": "a.mp4", "label": ["two", "red"], "qid": "q2"},
    {"caption": "dog ?", "clip_name": "b.mp4", "label": "purple", "qid": "q3"},
]
CHOICES = [
    {"qid": "m0", "clip_name": "a.mp4", "title": "t", "answer": "1", "options": ["a dog", "a cat", "one"]},
    {"qid": "m1", "clip_name": "b.mp4", "title": "t", "answer": "0", "options": ["a cat", "two"]},
    {"qid": "m2", "clip_name": "a.mp4", "title": "t", "options": ["red", "blue"]},
]
ROWS = {"captions": CAPTIONS, "questions": QUESTIONS, "choices": CHOICES}


def options(folder, *more, use="captions", output="", split="train", rows=None):
    """Return the words of the command; media and annotations are written if they are missing."""
    if not (folder / "media").exists():
        write_media(folder)
    lines = write_lines(folder / f"{use}-{split}.jsonl", ROWS[use] if rows is None else rows)
    named = {"output": folder / (output or use), "split": split, "annotations": lines, "use": use}
    named |= {"media": folder / "media", "num_shards": 2}
    if use == "questions":
        (folder / "answers.json").write_text(json.dumps(["red", "blue", "one", "two"]))
        named["answers"] = folder / "answers.json"
    words = (word for name, value in named.items() for word in (f"--{name}", value))
    return ["items", *map(str, (*words, *more))]


def prepared(folder, *more, use="captions", output="", split="train", rows=None):
    """Prepare a data set and return its folder."""
    prepare.main(options(folder, *more, use=use, output=output, split=split, rows=rows))
    return folder / (output or use)


def make_config(folder, head, *directories, **changes):
    """Return the config of small batches from prepared data, with a vocabulary in `folder`."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    config = default_config()
    config.head = head
    config.data.update(directories=tuple(map(str, directories)), streams=1, block=4, workers=2, options=3)
    config.frames.update(clips=2, size=16, short_side=(18, 24), evaluation_short_side=20, max_size=32)
    config.frames.update(heights=(32,), widths=(32,))
    config.text.update(vocabulary=str(vocabulary), length=8)
    config.words.matching = ""
    config.model.num_answers = 4
    config.update_from_flattened_dict(changes)
    return config
