"""MIL-NCE in miniature on the packaged clips: the whole pipeline in minutes, on a laptop's CPU. Variants:

(default)  a small S3D, a few hundred steps
smoke      a few steps on made-up data
"""

from ml_collections import ConfigDict

from vlm_jax.config import base_config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant."""
    config = base_config()
    config.task = "milnce"
    config.batch_size = 10
    config.steps = 300
    config.data.directory = "runs/data/clips"
    config.data.made = False
    config.clips = ConfigDict(
        {
            "num_frames": 8,
            "fps": 5,
            "size": 64,
            "min_time": 2.0,
            "num_candidates": 2,
            "crop_only": True,
            "center_crop": False,
            "random_flip": True,
        }
    )
    config.text = ConfigDict(
        {
            "vocabulary": "runs/data/clips/vocabulary.npy",
            "word2vec": "",
            "rows": 300,
            "word_dim": 64,
            "max_words": 20,
            "max_words_retrieval": 30,
            # Of sentences given to `inference.Model.encode_text`; the released model's own are True and 16.
            "lower_case": False,
            "max_words_raw": 30,
        }
    )
    config.model = ConfigDict(
        {
            "embedding_dim": 128,
            "text_hidden_dim": 256,
            "blocks": ("3b", "4b", "5b"),
            "width": 0.25,
            "space_to_depth": False,
            "weight_init": "kaiming_normal",
            "dtype": "float32",
            "convolution": "auto",
        }
    )
    config.loss = ConfigDict({"divide_gradient_by_groups": True})
    config.schedule.name = "cosine"
    config.schedule.learning_rate = 1e-3
    config.schedule.warmup_steps = 20
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 2
    config.evaluate.at_start = True
    config.evaluate.names = ("clips",)
    config.retrieval = ConfigDict(
        {"clips": {"directory": "runs/data/queries", "split": "test", "windows": 2, "frame_order": "filmed"}}
    )
    config.linear = ConfigDict({})
    if variant == "smoke":
        config.batch_size, config.steps, config.log_every = 4, 6, 1
        config.data.made = True
        config.clips.size = 32
        config.model.width = 0.125
        config.schedule.warmup_steps = 2
        config.checkpoint.every_steps = 3
        config.evaluate.at_start, config.evaluate.names = False, ()
        config.retrieval = ConfigDict({})
    return config
