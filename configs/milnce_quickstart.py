"""MIL-NCE on the packaged clips: the whole pipeline in minutes on a laptop's CPU. Variants:

(default)  a small S3D, a few hundred steps
smoke      a few steps of a smaller model on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.systems.milnce.config import default_config

VARIANTS = ("smoke",)


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.batch_size, config.batch_groups, config.data.streams = 10, 1, 1
    config.epochs, config.steps = 0, 300
    config.data.directory = "runs/data/clips"
    config.clips.num_frames, config.clips.size, config.clips.min_time, config.clips.num_candidates = 8, 64, 2.0, 2
    config.text.vocabulary, config.text.word2vec = "runs/data/clips/vocabulary.npy", ""
    config.text.rows, config.text.word_dim = 300, 64
    config.model.embedding_dim, config.model.text_hidden_dim = 128, 256
    config.model.blocks, config.model.width = ("3b", "4b", "5b"), 0.25
    config.model.weight_init = "kaiming_normal"
    config.schedule.warmup_steps = 20
    config.checkpoint.every_epochs, config.checkpoint.every_steps, config.checkpoint.keep = 0, 100, 2
    config.evaluate.at_start = True
    config.evaluate.names = ("clips",)
    config.retrieval = ConfigDict(
        {"clips": {"directory": "runs/data/queries", "split": "test", "windows": 2, "frame_order": "filmed"}}
    )
    if variant == "smoke":
        config.batch_size, config.steps, config.log_every = 4, 6, 1
        config.data.synthetic = True
        config.clips.size = 32
        config.model.width = 0.125
        config.schedule.warmup_steps = 2
        config.checkpoint.every_steps = 3
        config.evaluate.at_start, config.evaluate.names = False, ()
        config.retrieval = ConfigDict({})
    return config
