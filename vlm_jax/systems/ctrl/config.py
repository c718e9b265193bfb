"""Config of CTRL with the published sizes and recipe (PaddlePaddle/models release/1.8, TACoS)."""

from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import base_config
from vlm_jax.data.protocol import find_protocol

DESCRIBED = (
    "model.visual_dim",
    "model.sentence_dim",
    "data.video_source",
    "data.text_source",
    "data.video_features",
    "data.text_features",
    "data.window",
)
"""Keys that the training data decide; evaluation and prediction take them from the run."""

MAY_CHANGE = (
    "moments",
    "predict",
    "tile",
    "data.windows",
    "data.queries",
    "data.video_features.checkpoint",
    "data.text_features.checkpoint",
)
"""Keys that may differ when a run is resumed: evaluation, prediction and paths of data."""


def describe(config: ConfigDict) -> dict[str, Any]:
    """Return the values of config keys that the training data state about themselves."""
    found: dict[str, Any] = {}
    if windows := find_protocol(config.data.windows):
        found["model.visual_dim"] = 3 * windows["feature_dim"]
        found["data.video_source"] = windows["video_source"]
        found["data.video_features"] = windows.get("video_features", {})
        found["data.window"] = {key: windows.get(key, value) for key, value in config.data.window.items()}
    if queries := find_protocol(config.data.queries):
        found["model.sentence_dim"] = queries["sentence_dim"]
        found["data.text_source"] = queries["text_source"]
        found["data.text_features"] = queries.get("text_features", {})
    return found


def default_config() -> ConfigDict:
    """Return the published configuration, not locked."""
    config = base_config()
    config.task = "ctrl"
    config.batch_size = 56
    config.epochs = 25
    config.matmul_precision = "highest"
    config.data.windows = "data/tacos/windows_train"
    config.data.queries = "data/tacos/queries"
    config.data.split = "train"
    # A window is paired with a moment if they overlap by more than min_overlap, and if less than max_outside of the
    # window lies outside the moment.
    config.data.min_overlap = 0.5
    config.data.max_outside = 0.15
    # If true, a batch holds no two windows of one moment. Each would be a wrong one for the other's sentence.
    config.data.unique_clips = False
    # Context of a window: `context_num` stretches of `context_size` frames on each side. 'exact' or 'nearest' chooses
    # the windows that represent them, see `windows.context`.
    config.data.context_num = 1
    config.data.context_size = 128
    config.data.context = "exact"
    # Origin of the features of windows and sentences, '' and {} for the released files, and the cut of the windows. The
    # data state all of these, see `describe`.
    config.data.video_source, config.data.text_source = "", ""
    config.data.video_features, config.data.text_features = ConfigDict({}), ConfigDict({})
    config.data.window = ConfigDict({"fps": 0.0, "lengths": (64, 128, 256, 512), "overlap": 0.8})
    config.model = ConfigDict(
        {
            "visual_dim": 3 * 4096,
            "sentence_dim": 4800,
            "dim": 1024,
            "hidden_dim": 1000,
            "use_bias": False,
            "normalisation": "added",
            "projection_std": 1.0,
            # 0 stands for sqrt(2 / inputs).
            "head_std": 0.0,
            "factored": True,
            "dtype": "float32",
        }
    )
    # The weight of a right pair is positive_weight + alpha, that of a wrong one alpha; 0 stands for 1 / batch_size.
    config.loss = ConfigDict({"positive_weight": 1.0, "alpha": 0.0, "regression_weight": 0.01})
    config.optimizer.epsilon_before_correction = True
    config.optimizer.clip_norm = 5.0
    config.schedule.learning_rate = 1e-3
    config.checkpoint.every_epochs = 1
    config.evaluate.batch_size = 256
    # Evaluators by name.
    config.moments = ConfigDict({})
    # Data of launch/predict.py: windows, and the sentences of videos that are listed without any.
    config.predict = ConfigDict(
        {"windows": "data/tacos/windows_test", "queries": "data/tacos/queries", "split": "test"}
    )
    # Number of sentences and of windows that evaluation compares at the same time.
    config.tile = ConfigDict({"sentences": 16, "windows": 256})
    return config
