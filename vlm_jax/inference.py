"""Trained models on your own video and sentences, without TensorFlow.

model = inference.load("runs/quickstart")
video = model.encode_video("film.mp4", start=12.0)
text = model.encode_text(["a bird sings", "a car drives past"])
print(text @ video)
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from vlm_jax import config as configs
from vlm_jax.tasks.task import Task, get_task
from vlm_jax.text import word_list
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables
from vlm_jax.types import Batch, Outputs, Variables


class Model:
    """A restored checkpoint.

    Attributes:
      config: Of the run that made it.
      variables: Parameters and model state.
    """

    def __init__(self, config: ConfigDict, task: Task, variables: Variables) -> None:
        self.config, self.variables = config, variables
        self._encoders: dict[str, Callable[[Variables, Batch], Outputs]] = {
            name: jax.jit(encoder) for name, encoder in task.encoders.items()
        }
        self._vocabulary: dict[str, int] | None = None

    def encode_video(self, video: str | Path | np.ndarray, *, start: float = 0.0) -> np.ndarray:
        """Embeds one clip, or a batch of them.

        Args:
          video: A file, of which the clip that begins at `start` is read (centre square, at the config's rate, black
            beyond the end); or frames, uint8 `[T, H, W, 3]` or `[B, T, H, W, 3]`, RGB.
          start: Seconds into the file.

        Returns:
          `[D]`, or `[B, D]` for a batch.

        Raises:
          VideoError: where the file cannot be read.
          ValueError: for frames of another shape or type.
        """
        return self._video(video, start)["video_embedding"]

    def video_features(self, video: str | Path | np.ndarray, *, start: float = 0.0) -> np.ndarray:
        """The pooled feature before the joint space, `mixed_5c` `[C]` or `[B, C]`; arguments as `encode_video`."""
        return self._video(video, start)["mixed_5c"]

    def encode_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Embeds sentences: `[N, D]`. Words that the word list has not are dropped; nothing is lower-cased.

        Raises:
          VocabularyError: where the config names no usable word list.
          ValueError: for a single string.
        """
        if isinstance(sentences, str):
            raise ValueError("encode_text: expected a list of sentences, found one string")
        if self._vocabulary is None:
            self._vocabulary = word_list.load(self.config.text.vocabulary, self.config.text.rows)
        length = self.config.text.max_words_retrieval
        ids = np.stack([word_list.encode(sentence, self._vocabulary, length) for sentence in sentences])
        return np.asarray(self._encoders["text"](self.variables, {"text": ids})["text_embedding"])

    def _video(self, video: str | Path | np.ndarray, start: float) -> dict[str, np.ndarray]:
        clips = self.config.clips
        if isinstance(video, str | Path):
            from vlm_jax.video import decode

            video = decode.read_clip(
                video,
                start=start,
                num_frames=clips.num_frames,
                fps=clips.fps,
                filters=decode.square_crop(clips.size),
            )
        if video.dtype != np.uint8 or video.ndim not in (4, 5) or video.shape[-1] != 3:
            raise ValueError(f"encode_video: expected uint8 [T, H, W, 3], found {video.dtype} {list(video.shape)}")
        batch = video if video.ndim == 5 else video[None]
        outputs = jax.device_get(self._encoders["video"](self.variables, {"video": batch}))
        return {name: value if video.ndim == 5 else value[0] for name, value in outputs.items()}


def load(checkpoint: str | Path, *, vocabulary: str | Path = "") -> Model:
    """Restores a model.

    Args:
      checkpoint: A workdir (its newest checkpoint), a step's folder or a converted checkpoint.
      vocabulary: Word list to use instead of the config's; a converted checkpoint names none.

    Raises:
      CheckpointError: where there is no checkpoint.
      ConfigError: where no config.json lies beside it.
    """
    folder = checkpoint_folder(Path(checkpoint))
    config = configs.find(folder)
    if vocabulary:
        config.text.vocabulary = str(vocabulary)
    task = get_task(config)
    return Model(config, task, restore_variables(folder, task.abstract_variables()))
