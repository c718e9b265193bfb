"""Synthetic files of Ego4D NLQ: features of clips that show several things in turn, and questions about them."""

import json

import numpy as np

from data_prep.groundnlq import prepare as preparation
from vlm_jax.interop import torch_files

THINGS, WIDTH, WORD, STRIDE, FPS = 6, 12, 8, 16.0, 8.0
SECONDS = STRIDE / FPS
"""Seconds per position."""
SPLITS = {"train": "nlq_train.json", "validation": "nlq_val.json", "test": "nlq_test_unannotated.json"}


def write(folder, clips=8, seed=0, longest=50):
    """Write the files to a folder and return it.

    A clip shows some of the things, each for a while. A question names one of them.
    """
    rng = np.random.default_rng(seed)
    looks, words = (np.random.default_rng(7).normal(size=(THINGS, size)) for size in (WIDTH, WORD))
    for name in ("video", "text"):
        (folder / name).mkdir(parents=True)
    content = {split: [] for split in SPLITS}
    for number in range(clips):
        clip, length = f"clip{number}", int(rng.integers(30, longest + 1))
        shown = rng.permutation(THINGS)[:3]
        edges = np.linspace(0, length, 4).astype(int)
        features = np.concatenate(
            [np.repeat(looks[thing][None], n, 0) for thing, n in zip(shown, np.diff(edges), strict=True)]
        )
        features = (features + 0.1 * rng.normal(size=features.shape)).astype(np.float32)
        torch_files.save(folder / "video" / f"{clip}.pt", features)
        split = "validation" if number % 4 == 2 else "test" if number % 4 == 3 else "train"
        queries = []
        for place, thing in enumerate(shown):
            start, end = edges[place] * SECONDS, edges[place + 1] * SECONDS
            name = f"ann{number}_{len(queries)}"
            query = {"query": f"where is thing {thing}?"}
            if split != "test":
                query |= {"clip_start_sec": float(start), "clip_end_sec": float(end)}
            queries.append(query)
            tokens = words[thing] + 0.1 * rng.normal(size=(int(rng.integers(1, 5)), WORD))
            arrays = {"token_features": tokens.astype(np.float32), "allow_pickle": np.array(True)}
            np.savez_compressed(folder / "text" / f"{name}.npz", **arrays)
        queries.insert(1, {"query": ""})  # the index counts it: its name would be ann{number}_1
        for index in (2, 1):
            (folder / "text" / f"ann{number}_{index}.npz").rename(folder / "text" / f"ann{number}_{index + 1}.npz")
        made = {"clip_uid": clip, "video_start_sec": 10.0, "video_end_sec": 10.0 + length * SECONDS}
        made["annotations"] = [{"annotation_uid": f"ann{number}", "language_queries": queries}]
        content[split].append({"video_uid": f"video{number}", "clips": [made]})
    for split, videos in content.items():
        (folder / SPLITS[split]).write_text(json.dumps({"version": "1", "videos": videos}))
    return folder


def prepare(folder, dtype="float32"):
    """Prepare the data sets of a folder that `write` filled, and return the folder."""
    sizes = ["--dtype", dtype, "--num_shards", "2"]
    words = ["--features", folder / "video", "--output", folder / "features", "--dim", WIDTH]
    words += ["--feature_stride", STRIDE, "--fps", FPS]
    preparation.main(["features", *map(str, words), *sizes])
    for split, name in SPLITS.items():
        words = ["--annotations", folder / name, "--text", folder / "text", "--split", split, "--dim", WORD]
        preparation.main(["queries", *map(str, words), "--output", str(folder / "queries"), *sizes])
    return folder


def configure(config, folder):
    """Set a smoke config to read the data sets of a folder, and return it."""
    config.data.synthetic = False
    config.data.features, config.data.queries = str(folder / "features"), str(folder / "queries")
    config.data.feature_stride, config.data.fps = STRIDE, FPS
    config.model.video_dim, config.model.text_dim = WIDTH, WORD
    places = {"features": config.data.features, "queries": config.data.queries}
    with config.unlocked():
        config.moments = {
            split: {**places, "split": split, "thresholds": (0.3, 0.5), "ks": (1, 5)}
            for split in ("validation", "test")
        }
    config.predict.update(places)
    return config
