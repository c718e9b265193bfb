"""Prediction with trained models on your own video and sentences, without TensorFlow.

model = inference.load("runs/milnce")               # embeds: encode_video, encode_text, extract
model.search(["a bird sings"], "films")             # [[Match(video, score, start, end, levels), ...]]
model = inference.load("runs/snps3")                # embeds and searches; with the right head, answers
model.answer("film.mp4", "what sings?", options)    # [Answer(text, score), ...]
model = inference.load("runs/groundnlq")            # finds moments
model.ground("film.mp4", ["a bird sings"])          # [[Moment(start, end, score), ...]]
model = inference.load("runs/lfb")                  # detects actions of people
model.detect("film.mp4")                            # [Detection(second, box, actions, ...), ...]
"""

from collections.abc import Sequence
from pathlib import Path

from vlm_jax import config as configs
from vlm_jax.convert import checkpoint_path
from vlm_jax.errors import ConfigError
from vlm_jax.extraction import Extractor
from vlm_jax.predictor import Predictor
from vlm_jax.task import get_task
from vlm_jax.train.checkpoint import checkpoint_folder, restore_variables


def load(
    checkpoint: str | Path,
    *,
    vocabulary: str | Path = "",
    average: bool = False,
    video_checkpoint: str | Path = "",
    text_checkpoint: str | Path = "",
    overrides: Sequence[str] = (),
) -> Predictor:
    """Restore a checkpoint and return its system's predictor.

    Args:
      checkpoint: Workdir (its newest checkpoint), `WORKDIR@best`, `WORKDIR@STEP`, folder of a step, converted
        checkpoint, or `released:NAME`.
      vocabulary: Word list to use if the config, or that of the text encoder, names none.
      average: If true, use the running average of the parameters.
      video_checkpoint: Checkpoint of the encoder behind the features of videos, or of the detector behind a feature
        bank, if it was moved.
      text_checkpoint: Checkpoint of the encoder behind the sentence features, if it was moved.
      overrides: Changes to the run's config, such as '--config.predict.split=test'.

    Raises:
      CheckpointError: if there is no checkpoint.
      ConfigError: if there is no config.json beside it, or its system has no predictor.
    """
    folder = checkpoint_folder(checkpoint_path(checkpoint))
    config = configs.find(folder)
    for override in overrides:
        configs.apply_override(config, override)
    configs.check(config)
    if not configs.has_module(config.task, "predict"):
        raise ConfigError(f"{folder}: {config.task} has no predictor")
    extractor = None
    if "video_features" in config.data or "bank" in config:
        extractor = Extractor(
            config,
            load,
            video_checkpoint=str(video_checkpoint),
            text_checkpoint=str(text_checkpoint),
            vocabulary=str(vocabulary),
        )
    elif vocabulary:
        config.text.vocabulary = str(vocabulary)
    variables = restore_variables(folder, get_task(config).abstract_variables(), average=average)
    return configs.system_module(config.task, "predict").make_predictor(config, variables, extractor)
