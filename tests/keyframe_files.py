"""Small folders of extracted frames, annotations and proposals, for tests of lfb."""

import pickle

import numpy as np
import tensorflow as tf

from data_prep.lfb import prepare

FPS, INTERVAL, JITTER = 4, 2, 1
RATES = ("--fps", FPS, "--interval", INTERVAL, "--jitter", JITTER)
SECONDS = ("--start_second", 900, "--end_second", 906)


def write_frames(folder, video, count=24, size=(36, 48)):
    """Write JPEGs whose grey value is 4 times their number."""
    (folder / video).mkdir(parents=True)
    for number in range(1, count + 1):
        frame = np.full((*size, 3), 4 * number, np.uint8)
        (folder / video / f"img_{number:05d}.jpg").write_bytes(tf.io.encode_jpeg(frame, quality=90).numpy())


def write_inputs(folder, videos=("a", "b"), size=(36, 48)):
    """Write frames of two videos, their annotations, an excluded keyframe and proposals."""
    for video in videos:
        write_frames(folder / "frames", video, size=size)
    rows = [
        f"{video},0{second},{0.1 * person:.1f},0.2,{0.1 * person + 0.4:.1f},0.9,{action},{person}"
        for video in videos
        for second in (902, 903, 904)
        for person in range(1 + second % 2)
        for action in (12, 17 + person)
    ]
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    (folder / "excluded.csv").write_text("b,0904\n")
    boxes = np.array([[0.0, 0.2, 0.4, 0.9, 0.95], [0.5, 0.5, 0.9, 0.9, 0.85], [0.1, 0.1, 0.2, 0.2, 0.1]])
    (folder / "proposals.pkl").write_bytes(pickle.dumps({f"{video},0902": boxes for video in videos}, 2))


def options(folder, output="out", split="train", *more):
    """Return the words of the command for `write_inputs`."""
    named = {
        "output": folder / output,
        "split": split,
        "frames": folder / "frames",
        "annotations": folder / "train.csv",
    }
    named |= {"excluded": folder / "excluded.csv", "proposals": folder / "proposals.pkl", "num_shards": 2}
    words = [word for name, value in named.items() for word in (f"--{name}", value)]
    return ["keyframes", *map(str, (*words, *RATES, *SECONDS, *more))]


def prepared(folder, *more, output="out", split="train", **inputs):
    """Prepare `write_inputs` and return the folder of the data set."""
    if not (folder / "frames").exists():
        write_inputs(folder, **inputs)
    prepare.main(options(folder, output, split, *more))
    return folder / output
