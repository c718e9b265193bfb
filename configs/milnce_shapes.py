"""MIL-NCE on the made world: does a small S3D learn what happens from narration that is seconds off? Variants:

(default)  four candidates a clip; --config.clips.num_candidates=1 is ordinary contrastive training
short      300 steps, for the quickstart
smoke      a few steps on made-up data

In the made world left and right, and forwards and backwards, mean something: clips are never mirrored.
"""

from ml_collections import ConfigDict

from vlm_jax.config import base_config

VARIANTS = ("short", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant."""
    config = base_config()
    config.task = "milnce"
    config.batch_size = 64
    config.steps = 900
    data = "runs/data/shapes_short" if variant == "short" else "runs/data/shapes"
    config.data.directory = f"{data}/train"
    config.data.made = False
    config.clips = ConfigDict(
        {
            "num_frames": 8,
            "fps": 5,
            "size": 64,
            "min_time": 2.0,
            "num_candidates": 4,
            "crop_only": True,
            "center_crop": False,
            "random_flip": False,
        }
    )
    config.text = ConfigDict(
        {
            "vocabulary": f"{data}/vocabulary.npy",
            "word2vec": "",
            "rows": 128,
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
    config.schedule.learning_rate = 2e-3
    config.schedule.warmup_steps = 50
    config.checkpoint.every_steps = 300
    config.checkpoint.keep = 2
    held_out = {"directory": f"{data}/test", "split": "test", "windows": 2}
    config.retrieval = ConfigDict(
        {
            "shapes": held_out | {"frame_order": "filmed"},
            "shapes_shuffled": held_out | {"frame_order": "shuffled"},
            "shapes_reversed": held_out | {"frame_order": "reversed"},
        }
    )
    config.linear = ConfigDict({})
    config.evaluate.names = ("shapes",)
    if variant == "short":
        config.steps = 300
        config.evaluate.at_start = True
        config.evaluate.names = ("shapes",)
    elif variant == "smoke":
        config.batch_size, config.steps, config.log_every = 4, 6, 1
        config.data.made = True
        config.clips.size = 32
        config.model.width = 0.125
        config.schedule.warmup_steps = 2
        config.checkpoint.every_steps = 3
        config.evaluate.names = ()
        config.retrieval = ConfigDict({})
    return config
