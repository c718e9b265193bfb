"""Config of MIL-NCE with the published sizes and recipe (300 epochs, global batch size 1024, 16 processes)."""

from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import base_config
from vlm_jax.text import word_list

DESCRIBED = ("text.lower_case",)
"""Keys that the word list decides; evaluation and prediction take them from the run."""


def describe(config: ConfigDict) -> dict[str, Any]:
    """Return the values of config keys that the word list states about itself."""
    found = word_list.lower_cases(config.text.vocabulary)
    return {} if found is None else {"text.lower_case": found}


MAY_CHANGE = (
    "retrieval",
    "linear",
    "data.directory",
    "data.workers",
    "text.vocabulary",
)
"""Keys that may differ when a run is resumed: evaluation, workers and paths of data."""

CARRIED = ("text.vocabulary",)
"""Keys of files that are copied into a run's folder."""


def default_config() -> ConfigDict:
    """Return the published configuration, not locked."""
    config = base_config()
    config.task = "milnce"
    config.batch_size = 1024
    config.batch_groups = 16
    config.epochs = 300
    config.data.directory = "data/howto100m"
    # Number of streams that supply consecutive parts of every batch, and of record groups that are permuted together.
    config.data.streams, config.data.block = 16, 1024
    # Number of examples decoded at the same time; 0 lets tf.data choose.
    config.data.workers = 0
    config.clips = ConfigDict(
        {
            "num_frames": 16,
            "fps": 5,
            "size": 224,
            "min_time": 5.0,
            "num_candidates": 4,
            "crop_only": True,
            "center_crop": False,
            "random_flip": True,
        }
    )
    config.text = ConfigDict(
        {
            "vocabulary": "data/dict.npy",
            # Word table of a new run. It is not read if config.init_from is set, unless a pattern (config.init_fresh or
            # a source's `fresh`) leaves text/word_embd fresh.
            "word2vec": "data/word2vec.pth",
            "rows": 66250,
            "word_dim": 300,
            "max_words": 20,
            "max_words_retrieval": 30,
            # If true, text is lower-cased before its words are looked up; a word list with settings decides this.
            "lower_case": False,
            # Lower-casing and number of words for sentences given to a predictor; True and 16 in the released model.
            "lower_case_raw": False,
            "max_words_raw": 30,
        }
    )
    config.model = ConfigDict(
        {
            # Network of the video tower: 's3d', or 'swin' with the sizes of `swin`.
            "video": "s3d",
            "swin": {
                "features": 96,
                "depths": (2, 2, 18, 2),
                "heads": (3, 6, 12, 24),
                "window": (8, 7, 7),
                "drop_path": 0.2,
            },
            "embedding_dim": 512,
            "text_hidden_dim": 2048,
            "blocks": ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"),
            "width": 1.0,
            "space_to_depth": False,
            "weight_init": "uniform",
            "dtype": "float32",
        }
    )
    config.loss = ConfigDict({"divide_gradient_by_groups": True})
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 1e-3
    config.schedule.warmup_steps = 10000
    config.checkpoint.every_epochs = 1
    config.checkpoint.keep = 10
    # Evaluators by name: retrieval sets, and sets for a linear classifier on mixed_5c.
    config.retrieval, config.linear = ConfigDict({}), ConfigDict({})
    return config
