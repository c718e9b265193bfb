"""The keys of a CTRL config, with the published sizes and recipe (PaddlePaddle/models release/1.8, TACoS)."""

from ml_collections import ConfigDict

from vlm_jax.config import base_config


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
    # A window trains with a moment if they overlap by more than this and less of it than that lies outside.
    config.data.min_overlap = 0.5
    config.data.max_outside = 0.15
    # Whether a batch may hold two windows of one moment, each of which is then a wrong one for the other's sentence.
    config.data.unique_clips = False
    # Frames that stand around a window: `context_num` stretches of `context_size` frames on each side; 'exact' or
    # 'nearest' says which windows stand for them.
    config.data.context_num = 1
    config.data.context_size = 128
    config.data.context = "exact"
    # What features and vectors were made with, as `data_prep/ctrl.py` states it; '' for the released files.
    config.data.visual_source = ""
    config.data.sentence_source = ""
    config.model = ConfigDict(
        {
            "visual_dim": 3 * 4096,
            "sentence_dim": 4800,
            "dim": 1024,
            "hidden_dim": 1000,
            "use_bias": False,
            "normalisation": "added",
            "projection_std": 1.0,
            # 0 is sqrt(2 / inputs).
            "head_std": 0.0,
            "factored": True,
            "dtype": "float32",
        }
    )
    # A right pair weighs positive_weight + alpha, a wrong one alpha, which is 1 / batch_size where it is 0.
    config.loss = ConfigDict({"positive_weight": 1.0, "alpha": 0.0, "regression_weight": 0.01})
    config.optimizer.epsilon_before_correction = True
    config.optimizer.clip_norm = 5.0
    config.schedule.learning_rate = 1e-3
    config.checkpoint.every_epochs = 1
    config.evaluate.batch_size = 256
    # Evaluators by name.
    config.moments = ConfigDict({})
    # Where launch/predict.py finds windows, and the sentences of videos that are listed without any.
    config.predict = ConfigDict(
        {"windows": "data/tacos/windows_test", "queries": "data/tacos/queries", "split": "test"}
    )
    # Sentences and windows that evaluation compares at the same time.
    config.tile = ConfigDict({"sentences": 16, "windows": 256})
    return config
