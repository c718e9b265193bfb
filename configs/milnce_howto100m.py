"""MIL-NCE on HowTo100M. Variants:

(default)  300 epochs, global batch size 1024 on 16 processes: the longer of the published PyTorch runs
short      150 epochs, global batch size 512 on 8 processes
paper      32 frames of 200 x 200 pixels and batch statistics over the whole batch, as in the paper's TPU runs
smoke      a few steps of a small model on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.systems.milnce.config import default_config

VARIANTS = ("short", "paper", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.checkpoint.keep_best = 1
    config.checkpoint.best_metric = "youcook2/R@10"
    # To train without YouCook2: --config.evaluate.names="()" --config.checkpoint.keep_best=0
    config.evaluate.names = ("youcook2",)
    config.evaluate.every_epochs = 2
    config.retrieval = ConfigDict(
        {
            "youcook2": {"directory": "data/youcook2", "split": "validation", "windows": 10, "frame_order": "filmed"},
            "msrvtt": {"directory": "data/msrvtt", "split": "test", "windows": 10, "frame_order": "filmed"},
        }
    )
    # The reference intends to add mirrored windows but drops them by mistake. If true, `flipped` adds them.
    config.linear = ConfigDict(
        {"hmdb51": {"directory": "data/hmdb51", "split": "videos", "windows": 10, "flipped": False}}
    )
    if variant == "short":
        config.batch_size, config.batch_groups, config.data.streams, config.epochs = 512, 8, 8, 150
        config.evaluate.every_epochs = 1
    elif variant == "paper":
        config.batch_groups = 1
        config.clips.num_frames, config.clips.fps, config.clips.size = 32, 10, 200
    elif variant == "smoke":
        config.batch_size, config.batch_groups, config.data.streams = 4, 2, 1
        config.epochs, config.steps, config.log_every = 0, 6, 1
        config.data.synthetic = True
        config.clips.num_frames, config.clips.size, config.clips.num_candidates = 8, 32, 2
        config.text.vocabulary, config.text.word2vec, config.text.rows = "", "", 100
        config.model.width, config.model.blocks = 0.125, ("3b", "4b", "5b")
        config.model.embedding_dim, config.model.text_hidden_dim = 32, 64
        config.schedule.warmup_steps = 2
        config.checkpoint.every_steps, config.checkpoint.every_epochs = 3, 0
        config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
        config.evaluate.every_epochs, config.evaluate.names = 0, ()
        config.retrieval, config.linear = ConfigDict({}), ConfigDict({})
    return config
