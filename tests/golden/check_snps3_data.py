"""Checks of the golden cases of snps3's annotations, frame sampling and transforms."""

import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from snps3_tolerance import check

from vlm_jax.ops.pixels import IMAGENET_DEVIATION, IMAGENET_MEAN
from vlm_jax.systems.snps3 import annotations, sampling, transforms
from vlm_jax.systems.snps3.model import grid_mask


class Drawn:
    """Generator that repeats the reference's draws, and checks their ranges, whose upper end is included."""

    def __init__(self, draws):
        self.draws = list(draws)

    def integers(self, low, high):
        *bounds, picked = self.draws.pop(0)
        assert bounds == [low, high - 1]
        return picked


def check_frame_sampling(case, precision):
    """Compare the frames of evaluation and of training, draw by draw."""
    for each in case.manifest["cases"]:
        length, clips = each["video_len"], each["num_clips"]
        drawn = Drawn(each["rand_draws_lo_hi_pick"])
        assert sampling.frame_indices(length, clips).tolist() == each["uniform"]
        assert sampling.frame_indices(length, clips, drawn).tolist() == each["rand"]
        assert not drawn.draws


def check_image_transform(case, precision):
    """Compare resized sizes, random scales, pixels, padding and masks."""
    for each in case.manifest["sizes"]:
        for side in (448, 768):
            assert list(transforms.long_side_size(*each["hw"], side)) == each[f"resized_{side}"]
    for side in (448, 768):
        assert transforms.random_scales(side) == case.manifest[f"random_scales_{side}"]
    image = case["in/image"].transpose(0, 2, 3, 1)
    resized = transforms.interpolate(image, *transforms.long_side_size(*image.shape[1:3], 24))
    assert image.max() > 1
    found = {
        "out/resized_longside24": resized.transpose(0, 3, 1, 2),
        "out/normalised": ((resized / 255 - IMAGENET_MEAN) / IMAGENET_DEVIATION).transpose(0, 3, 1, 2),
    }
    pictures = [case[f"in/collate_{number}"].transpose(1, 2, 0) for number in range(3)]
    sizes = np.array([picture.shape[:2] for picture in pictures])
    canvas = tuple(sizes.max(0).tolist())
    padded = [transforms.on_canvas(picture[None], *canvas)[0].transpose(2, 0, 1) for picture in pictures]
    found["out/padded"] = np.stack(padded)
    # Cells of one pixel; one group has one canvas.
    found["out/pad_mask_true_is_pad"] = ~np.asarray(grid_mask(jnp.asarray(sizes), canvas, canvas, strict=True))
    check(case, found)


def lines(rows, use, folder):
    """Return the lines of a file with these rows."""
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found, faults = annotations.read_lines(path, use)
    assert not faults
    return found


def check_annotations(case, precision):
    """Compare the grouping of lines for every use."""
    with tempfile.TemporaryDirectory() as folder:
        given = {
            name: lines(case.manifest[f"{name}_rows"], use, Path(folder))
            for name, use in (
                ("pretrain", "captions"),
                ("retrieval", "captions"),
                ("multi_choice", "choices"),
            )
        }
    wanted = case.manifest["result"]
    texts = annotations.number_texts(given["retrieval"])
    by_video, by_text = {}, {}
    for item in annotations.single_lines(given["retrieval"]):
        text = texts[item.lines[0].text]
        by_video.setdefault(item.video, []).append(text)
        by_text.setdefault(text, []).append(item.video)
    for name, items in (
        ("retrieval_train", annotations.group_parts(given["retrieval"])),
        ("retrieval_test", annotations.single_lines(given["retrieval"])),
    ):
        found = {}
        for number, item in enumerate(items):
            found[str(number)] = [
                {
                    "clip_name": item.part[0],
                    "vid": item.video,
                    "caption": line.text,
                    "tid": texts[line.text],
                    "v2tid_list": by_video[item.video],
                    "t2vid_list": by_text[texts[line.text]],
                    "key": line.key,
                    "type": item.media,
                }
                for line in item.lines
            ]
        for entry in [each for entries in (*found.values(), *wanted[name].values()) for each in entries]:
            entry["v2tid_list"], entry["t2vid_list"] = sorted(entry["v2tid_list"]), sorted(entry["t2vid_list"])
        assert found == wanted[name]
    found = {
        str(number): [
            {
                "clip_name": item.part[0],
                "caption": line.text,
                "video_idx": item.video,
                "key": line.key,
                "type": item.media,
                "start": item.part[1],
                "end": item.part[2],
            }
            for line in item.lines
        ]
        for number, item in enumerate(annotations.group_parts(given["pretrain"]))
    }
    assert found == wanted["pretrain"]
    ((entry,),) = wanted["multi_choice"].values()
    ((line,),) = [item.lines for item in annotations.single_lines(given["multi_choice"])]
    assert (line.clip_name, line.key, line.media) == (entry["clip_name"], entry["qid"], entry["type"])
    assert (str(line.answers[0]), list(line.options)) == (entry["label"], entry["options"])


CHECKERS = {
    "annotations": check_annotations,
    "frame_sampling": check_frame_sampling,
    "image_transform": check_image_transform,
}
