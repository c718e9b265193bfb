"""Features on disk: one array a video, and what they were made with; numpy only, no TensorFlow.

    DIR/features.json               settings of all that lies below
    DIR/RELATIVE/PATH/OF/VIDEO.npy  [N, C], one row per window
    DIR/RELATIVE/PATH/OF/VIDEO.duration.json  seconds of the video, beyond which the last window is black

Whoever reads features states what it expects of them, so that a model is never trained on some and used on others.
"""

import dataclasses
import json
import math
import os
import reprlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.array_files import load_array
from vlm_jax.errors import UserError
from vlm_jax.files import replacing, write_json

SETTINGS = "features.json"

END = "the last window is filled up with black frames"
"""What happens at the end of a video: windows follow one another until one holds the last frame."""

INFORMATION = ("checkpoint", "step")
"""Settings for people: a checkpoint may be moved, its fingerprint stays."""


class FeatureError(UserError):
    """Features that cannot be used; one line naming the file."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What features were made with.

    Row i stands for the frames from i * stride on, `window` of them.

    Attributes:
      layer: Output of the encoder.
      window: Frames of a row.
      stride: Frames from one row to the next.
      fps: Frames per second.
      size: Sides of a frame, pixels.
      crop: 'center', the largest square, or 'none', the whole frame squeezed into one.
      dtype: Of the stored numbers: 'float32' or 'float16'.
      dim: C.
      fingerprint: Of the checkpoint's variables (`Predictor.fingerprint`).
      checkpoint: Where it lay.
      step: Of the run, None for a converted checkpoint.
      end: What happens at the end of a video.
    """

    layer: str
    window: int
    stride: int
    fps: float
    size: int
    crop: str
    dtype: str
    dim: int
    fingerprint: str
    checkpoint: str = ""
    step: int | None = None
    end: str = END

    @property
    def source(self) -> str:
        """All that decides the features, in one word: what a data set states and a model asks for."""
        rate, size = f"{self.window}/{self.stride}@{self.fps:g}", f"{self.size}{self.crop}"
        return ":".join((self.layer, rate, size, self.dtype, self.fingerprint[:16]))

    def seconds(self, row: int) -> tuple[float, float]:
        """When a row begins and ends, seconds; the end may lie after the video's."""
        return row * self.stride / self.fps, (row * self.stride + self.window) / self.fps

    def rows(self, frames: int) -> int:
        """N for a video of so many frames at `fps`: as many windows as begin in it, none after one that holds its end.

        With a stride up to the window's length every frame is in some window.
        """
        reach_end = math.ceil((frames - self.window) / self.stride) + 1
        return max(1, min(reach_end, math.ceil(frames / self.stride)))


def write_settings(directory: str | Path, settings: Settings) -> None:
    """Begin a folder of features, or resume one; several processes may do so at the same time.

    Raises:
      FeatureError: where it was begun with other settings.
    """
    path = Path(directory) / SETTINGS
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        times = {"row_begins_seconds": "row * stride / fps", "row_lasts_seconds": settings.window / settings.fps}
        content = {**dataclasses.asdict(settings), **times}
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            partial.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            _place(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    wanted = dataclasses.asdict(settings)
    check_settings(directory, {key: value for key, value in wanted.items() if key not in INFORMATION})


def _place(partial: Path, path: Path) -> None:
    """Gives a whole file its name, unless another process was quicker."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        partial.replace(path)


def read_settings(directory: str | Path) -> Settings:
    """What the features of a folder were made with.

    Raises:
      FeatureError: where there is no such folder, or its settings are damaged.
    """
    path = Path(directory) / SETTINGS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = Settings(**{field.name: content[field.name] for field in dataclasses.fields(Settings)})
    except FileNotFoundError:
        raise FeatureError(
            f"features {directory}: no {SETTINGS} there; expected a folder made by launch/extract_features.py"
        ) from None
    except (ValueError, TypeError) as error:
        raise FeatureError(f"{path}: damaged ({error})") from None
    except KeyError as error:
        raise FeatureError(f"{path}: has no key {error}") from None
    for name, value in dataclasses.asdict(settings).items():
        if not _is_setting(name, value):
            raise FeatureError(f"{path}: {name} is {reprlib.repr(value)}, which is no such setting")
    return settings


def _is_setting(name: str, value: Any) -> bool:
    if name == "step":
        return value is None or type(value) is int
    if name == "fps":
        return type(value) in (int, float) and 0 < value < math.inf
    if name in ("window", "stride", "size", "dim"):
        return type(value) is int and value > 0
    return isinstance(value, str)


def check_settings(directory: str | Path, wanted: Mapping[str, Any]) -> Settings:
    """Checks that features were made the way their reader expects.

    Args:
      directory: Of the features.
      wanted: Expected values of some or all of the settings, by name.

    Returns:
      All settings of the folder.

    Raises:
      FeatureError: naming the file, the first key that differs, what was found and what was expected.
    """
    found = read_settings(directory)
    for key, value in wanted.items():
        if key not in found.__dataclass_fields__:
            raise FeatureError(f"features {directory}: there is no setting {key!r} to expect {value!r} of")
        if getattr(found, key) != value:
            raise FeatureError(
                f"{Path(directory) / SETTINGS}: made with {key} = {getattr(found, key)!r}, expected {value!r}"
            )
    return found


def feature_path(directory: str | Path, name: str) -> Path:
    """The file of a video's features; `name` is its path in the folder of videos, without the ending."""
    return Path(directory) / f"{name}.npy"


def save(directory: str | Path, name: str, features: np.ndarray, duration: float = 0.0) -> None:
    """Write the features of one video of `duration` seconds (0: not known); the file appears when it is whole."""
    path = feature_path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(_duration_path(path), {"seconds": duration})
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, features)


def load_duration(directory: str | Path, name: str) -> float:
    """Return the seconds of a video whose features lie in a folder, 0 where they are not known.

    Raises:
      FeatureError: where the file that says so is damaged.
    """
    path = _duration_path(feature_path(directory, name))
    try:
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    except FileNotFoundError:
        return 0.0
    except (OSError, ValueError, KeyError, TypeError):
        seconds = None
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise FeatureError(f"{path}: expected an object with 'seconds', 0 or more")
    return float(seconds)


def _duration_path(path: Path) -> Path:
    return path.with_suffix(".duration.json")


def load(directory: str | Path, name: str, settings: Settings | None = None) -> np.ndarray:
    """The features of one video, `[N, C]`.

    Args:
      directory: Of the features.
      name: Of the video: its path in the folder of videos, without the ending.
      settings: As `check_settings` returned them; else they are read.

    Raises:
      FeatureError: where there are none, or they do not fit the settings.
    """
    path = feature_path(directory, name)
    settings = settings or read_settings(directory)
    try:
        features = load_array(path)
    except FileNotFoundError:
        raise FeatureError(f"{path}: no such file; the video was skipped or is still to be extracted") from None
    except OSError as error:
        raise FeatureError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise FeatureError(f"{path}: damaged ({' '.join(str(error).split())})") from None
    if features.ndim != 2 or features.shape[1] != settings.dim or features.dtype != settings.dtype:
        raise FeatureError(
            f"{path}: found {features.dtype} {list(features.shape)}, expected {settings.dtype} [N, {settings.dim}]"
        )
    return features
