"""Extract features of videos: python launch/extract_features.py --checkpoint PATH --videos FOLDER --output DIR [...]

Writes one array `[N, C]` per video to `DIR/RELATIVE/PATH.npy`, one row per window, with the video's duration beside it.
`DIR/features.json` states the settings; `vlm_jax/features.py` reads both. The same command again extracts what is
missing. With --num_shards N, the videos are divided among N processes with --shard_index 0 to N-1.
"""

import argparse
import csv
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import _cli

from vlm_jax import features as feature_files
from vlm_jax import inference
from vlm_jax.convert import checkpoint_path
from vlm_jax.features import FeatureError, Settings
from vlm_jax.predictor import Predictor
from vlm_jax.progress import Progress
from vlm_jax.train.step_folders import checkpoint_folder
from vlm_jax.video import decode
from vlm_jax.video.decode import VideoError
from vlm_jax.video.listing import ENDINGS, walk


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="RUN, RUN@best, converted checkpoint, released:milnce")
    parser.add_argument("--videos", required=True, type=Path, help="folder of the videos")
    parser.add_argument("--list", type=Path, help="csv with the column video_path, below --videos (default: all)")
    parser.add_argument("--output", required=True, type=Path, help="folder of the features")
    parser.add_argument("--layer", default="mixed_5c", help="output of the video encoder (default: %(default)s)")
    parser.add_argument("--window", type=int, help="frames per row (default: those of the checkpoint's clip)")
    parser.add_argument("--stride", type=int, help="frames from one row to the next (default: the window)")
    parser.add_argument("--fps", type=float, help="frames per second (default: the checkpoint's)")
    parser.add_argument("--size", type=int, help="height and width, pixels (default: the checkpoint's)")
    parser.add_argument(
        "--crop",
        default="center",
        choices=("center", "none"),
        help="largest square, or whole frame squeezed into a square",
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="type of the features")
    parser.add_argument("--batch_size", type=int, default=8, help="windows per batch (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="decoder threads (default: %(default)s; 0: all cores)")
    parser.add_argument("--shard_index", type=int, default=0, help="part of the videos to extract, from 0")
    parser.add_argument("--num_shards", type=int, default=1, help="number of parts")
    arguments = parser.parse_args()
    if not 0 <= arguments.shard_index < arguments.num_shards:
        raise FeatureError(f"--shard_index: {arguments.shard_index} is not one of 0 to {arguments.num_shards - 1}")
    for name in ("window", "stride", "fps", "size", "batch_size"):
        if (value := getattr(arguments, name)) is not None and value <= 0:
            raise FeatureError(f"--{name}: expected more than 0, found {value}")
    videos = find_videos(arguments.videos, arguments.list)
    _cli.compile_cache()
    model = inference.load(arguments.checkpoint)
    if not hasattr(model, "extract"):
        raise FeatureError(f"{arguments.checkpoint}: a checkpoint of {model.config.task} makes no features of videos")
    settings = make_settings(arguments, model)
    feature_files.write_settings(arguments.output, settings)
    extract(arguments, model, settings, dict(list(videos.items())[arguments.shard_index :: arguments.num_shards]))


def make_settings(arguments: argparse.Namespace, model: Predictor) -> Settings:
    """Return the settings of the options, completed by those of the checkpoint."""
    folder, clips = checkpoint_folder(checkpoint_path(arguments.checkpoint)), model.config.clips
    window, size = arguments.window or clips.num_frames, arguments.size or clips.size
    return Settings(
        layer=arguments.layer,
        window=window,
        stride=arguments.stride or window,
        fps=float(arguments.fps or clips.fps),
        size=size,
        crop=arguments.crop,
        dtype=arguments.dtype,
        dim=model.feature_dim(arguments.layer, window=window, size=size),
        fingerprint=model.fingerprint(),
        checkpoint=_cli.lasting(arguments.checkpoint, folder),
        step=int(folder.name) if folder.name.isdigit() else None,
    )


def extract(arguments: argparse.Namespace, model: Predictor, settings: Settings, videos: dict[str, str]) -> None:
    """Extract the missing features. Videos that cannot be used are counted and listed.

    Raises:
      FeatureError: if no video gives features.
    """
    output, reasons, rows = arguments.output, Counter(), 0
    files = {name: feature_files.feature_path(output, name) for name in videos}
    missing = {name: path for name, path in videos.items() if not os.path.exists(files[name])}
    finished = len(videos) - len(missing)
    listing = output / f"skipped-{arguments.shard_index}.csv"
    with skipped_list(listing) as skip, Progress("extracting", len(videos), start=finished) as progress:
        for name, path in missing.items():
            try:
                duration = decode.probe(arguments.videos / path).duration
                features = model.extract(
                    arguments.videos / path,
                    layer=settings.layer,
                    window=settings.window,
                    stride=settings.stride,
                    fps=settings.fps,
                    size=settings.size,
                    crop=settings.crop,
                    batch_size=arguments.batch_size,
                    threads=arguments.threads,
                )
            except VideoError as error:
                reasons[error.reason] += 1
                skip.writerow((path, error.reason, error.detail))
            else:
                feature_files.save(output, name, features.astype(settings.dtype), duration)
                rows += len(features)
            progress.advance(note=path)
    skipped = sum(reasons.values())
    if videos and skipped == len(videos):
        raise FeatureError(f"{arguments.videos}: none of {skipped} videos could be used; see {listing}")
    print(
        f"{output}: {len(missing) - skipped} videos, {rows} rows of {settings.dim}; "
        f"{finished} finished before, {skipped} skipped"
    )
    for reason, number in sorted(reasons.items()):
        print(f"  {number} x {reason}")
    if skipped:
        print(f"  each with its reason in {listing}")


def find_videos(folder: Path, listed: Path | None) -> dict[str, str]:
    """Return the paths of the videos of a list, or of all videos below the folder, by the names of their features.

    Paths are relative to the folder; a name is a path without its ending.

    Raises:
      FeatureError: if there are no videos, two would give the same file, or one lies outside the folder.
    """
    if not os.path.isdir(folder):
        raise FeatureError(f"--videos {folder}: no such folder")
    paths = read_list(listed) if listed else walk(folder)
    if not paths:
        raise FeatureError(f"{listed or folder}: no videos" + ("" if listed else f" ({', '.join(sorted(ENDINGS))})"))
    videos: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or not pure.name:
            raise FeatureError(f"{listed}: video_path {path!r}: expected a path below {folder}")
        name = str(pure.with_suffix(""))
        if name in videos:
            raise FeatureError(f"{folder}: {videos[name]} and {path} would both become {name}.npy; rename one")
        videos[name] = path
    return videos


def read_list(path: Path) -> list[str]:
    """Return the column `video_path` of a csv file.

    Raises:
      FeatureError: for a file that does not exist, is not a UTF-8 csv file, or lacks the column.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if "video_path" not in (reader.fieldnames or ()):
                found = ", ".join(reader.fieldnames or ()) or "none"
                raise FeatureError(f"{path}: no column 'video_path'; it has {found}")
            return [row["video_path"] for row in reader]
    except FileNotFoundError:
        raise FeatureError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise FeatureError(f"{path}: not a UTF-8 csv file ({error})") from None


@contextmanager
def skipped_list(path: Path) -> Iterator:
    """Open a csv file of this run's skipped videos; each row is written at once."""
    with open(path, "w", buffering=1, newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("video_path", "reason", "detail"))
        yield writer


if __name__ == "__main__":
    _cli.run(main)
