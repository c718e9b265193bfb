"""CTRL on TACoS. Variants:

(default)  PaddlePaddle/models release/1.8 (`PaddleCV/video/configs/tall.yaml`): 25 epochs, batch size 56
original   jiyanggao/TALL: biases, 20000 steps at a higher learning rate, no clipping, no moment twice in a batch
smoke      a few steps of a small model on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.systems.ctrl.config import default_config

VARIANTS = ("original", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.evaluate.every_epochs = 1
    config.evaluate.names = ("tacos",)
    config.checkpoint.keep_best, config.checkpoint.best_metric = 1, "tacos/mean_R@1"
    config.moments = ConfigDict(
        {
            "tacos": {
                "windows": "data/tacos/windows_test",
                "queries": "data/tacos/queries",
                "split": "test",
                "thresholds": (0.1, 0.3, 0.5, 0.7),
                "ks": (1, 5, 10),
                # If true, sentences of videos without windows count as wrong; the reference leaves them out.
                "count_videos_without_windows": False,
            }
        }
    )
    if variant == "original":
        config.epochs, config.steps = 0, 20000
        config.data.unique_clips = True
        config.model.use_bias, config.model.normalisation, config.model.head_std = True, "floor", 0.01
        config.optimizer.clip_norm = 0.0
        config.schedule.learning_rate = 5e-3
        config.checkpoint.every_epochs, config.checkpoint.every_steps = 0, 2000
        config.evaluate.every_epochs, config.evaluate.every_steps = 0, 2000
        config.moments.tacos.thresholds = (0.1, 0.2, 0.3, 0.4, 0.5)
        config.moments.tacos.count_videos_without_windows = True
    elif variant == "smoke":
        config.batch_size, config.epochs, config.steps, config.log_every = 8, 0, 6, 1
        config.data.synthetic = True
        config.model.visual_dim, config.model.sentence_dim = 24, 10
        config.model.dim, config.model.hidden_dim = 16, 12
        config.checkpoint.every_steps, config.checkpoint.every_epochs = 3, 0
        config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
        config.evaluate.every_epochs, config.evaluate.names = 0, ()
        config.moments = ConfigDict({})
    return config
