"""Features of videos on disk, one array per video, with their settings; numpy only.

    DIR/features.json               settings of all features below
    DIR/RELATIVE/PATH/OF/VIDEO.npy  `[N, C]`, one row per window
    DIR/RELATIVE/PATH/OF/VIDEO.duration.json  duration of the video in seconds; beyond it, the last window is black

Readers of features state the settings that they expect, so that a model is never used on features of another kind than
it was trained on.
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
"""Rule for the end of a video: windows follow one another until one holds the last frame."""

INFORMATION = ("checkpoint", "step")
"""Settings that are not compared: a checkpoint may be moved, but its fingerprint stays the same."""


class FeatureError(UserError):
    """Features that cannot be used; one line naming the file."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that features were made with.

    Row i has the features of `window` frames from frame i * stride on.

    Attributes:
      layer: Name of the encoder's output.
      window: Number of frames per row.
      stride: Number of frames from one row to the next.
      fps: Frames per second.
      size: Height and width of a frame, pixels.
      crop: 'center' for the largest square, or 'none' for the whole frame scaled to a square.
      dtype: Type of the stored numbers, 'float32' or 'float16'.
      dim: Number of features per row, C.
      fingerprint: Fingerprint of the checkpoint's variables (`Predictor.fingerprint`).
      checkpoint: Path of the checkpoint at that time.
      step: Step of the run; None for a converted checkpoint.
      end: Rule for the end of a video.
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
        """Return everything that the features depend on as one word, which data sets state and models ask for."""
        rate, size = f"{self.window}/{self.stride}@{self.fps:g}", f"{self.size}{self.crop}"
        return ":".join((self.layer, rate, size, self.dtype, self.fingerprint[:16]))

    def seconds(self, row: int) -> tuple[float, float]:
        """Return start and end of a row in seconds; the end may lie after the end of the video."""
        return row * self.stride / self.fps, (row * self.stride + self.window) / self.fps

    def rows(self, frames: int) -> int:
        """Return the number of rows N for a video of this number of frames at `fps`.

        Every row begins within the video, and no row follows one that holds the last frame. If the stride is at most
        the window's length, every frame is in a row.
        """
        reach_end = math.ceil((frames - self.window) / self.stride) + 1
        return max(1, min(reach_end, math.ceil(frames / self.stride)))


def write_settings(directory: str | Path, settings: Settings) -> None:
    """Write the settings of a new folder of features, or check those of one that is resumed.

    Several processes may do so at the same time.

    Raises:
      FeatureError: if the folder was begun with other settings.
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
    """Give a complete file its final name, unless another process has done so already."""
    try:
        os.link(partial, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        partial.replace(path)


def read_settings(directory: str | Path) -> Settings:
    """Read the settings that the features of a folder were made with.

    Raises:
      FeatureError: if there is no such folder, or its settings are damaged.
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
    """Check that features were made with the settings that their reader expects.

    Args:
      directory: Folder of features.
      wanted: Expected values of some or all settings, by name.

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
    """Return the path of a video's features; `name` is its path in the folder of videos, without the ending."""
    return Path(directory) / f"{name}.npy"


def save(directory: str | Path, name: str, features: np.ndarray, duration: float = 0.0) -> None:
    """Write the features of one video, atomically.

    Args:
      directory: Folder of features.
      name: Path of the video in the folder of videos, without the ending.
      features: Features, `[N, C]`.
      duration: Duration of the video in seconds, 0 if unknown.
    """
    path = feature_path(directory, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(_duration_path(path), {"seconds": duration})
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, features)


def load_duration(directory: str | Path, name: str) -> float:
    """Return the duration in seconds of a video whose features lie in a folder; 0 if it is unknown.

    Raises:
      FeatureError: if the file with the duration is damaged.
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
    """Load the features of one video, `[N, C]`.

    Args:
      directory: Folder of features.
      name: Path of the video in the folder of videos, without the ending.
      settings: Settings from `check_settings`; read from the folder if not given.

    Raises:
      FeatureError: if there are no features of the video, or they do not fit the settings.
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
