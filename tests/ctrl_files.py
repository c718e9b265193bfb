"""Synthetic files of CTRL: windows, frame counts and sentence vectors of videos that show six things in turn."""

import pickle

import numpy as np

from data_prep.ctrl import prepare as preparation
from vlm_jax.systems.ctrl.windows import sliding_windows

THINGS, SHOWN, WIDTH, VECTOR, LENGTHS = 10, 6, 8, 10, (64, 128)


def write(folder, videos=6, seed=0):
    """Write the files to a folder and return it.

    A video shows some of the things, each for a while. A window's feature is the sum of the things' vectors, each
    weighted by the part of the window that shows the thing.
    """
    rng = np.random.default_rng(seed)
    features = folder / "features"
    features.mkdir(parents=True)
    looks, words = np.random.default_rng(7).normal(size=(THINGS, WIDTH)), np.eye(THINGS, VECTOR)
    frames, clips = {}, {"train": [], "test": []}
    for number in range(videos):
        video = f"s{number}-d_{number}.avi"
        order = rng.permutation(THINGS)[:SHOWN]
        edges = np.concatenate([[1], 1 + np.cumsum(rng.integers(100, 160, SHOWN))])
        frames[video.split(".")[0].encode()] = int(edges[-1])
        for start, end in sliding_windows(int(edges[-1]), LENGTHS):
            shown = np.clip(np.minimum(end, edges[1:]) - np.maximum(start, edges[:-1]), 0, None) / (end - start)
            np.save(features / f"{video}_{start}_{end}.npy", (shown @ looks[order]).astype(np.float32))
        for thing, start, end in zip(order, edges[:-1], edges[1:], strict=True):
            vectors = [(words[thing] + 0.05 * rng.normal(size=VECTOR)).astype(np.float32) for _ in range(2)]
            split = "test" if number == videos - 1 else "train"
            clips[split].append([f"{video}_{start}_{end}".encode(), [np.append(v, 99.0) for v in vectors]])
    (folder / "frames.pkl").write_bytes(pickle.dumps(frames, 2))
    for split, content in clips.items():
        (folder / f"{split}.pkl").write_bytes(pickle.dumps(content, 2))
    return folder


def prepare(folder, fps="20"):
    """Prepare the data sets of a folder that `write` filled, and return the folder."""
    sizes = ["--fps", fps, "--num_shards", "2"]
    source = ["--features", str(folder / "features"), "--frames", str(folder / "frames.pkl"), "--dim", str(WIDTH)]
    preparation.main(["windows", *source, "--output", str(folder / "windows"), *sizes])
    for split in ("train", "test"):
        source = ["--sentences", str(folder / f"{split}.pkl"), "--split", split, "--dim", str(VECTOR)]
        preparation.main(["queries", *source, "--output", str(folder / "queries"), *sizes])
    return folder
