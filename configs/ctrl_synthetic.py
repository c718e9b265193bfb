"""CTRL on the synthetic world: a small model finds the moments that sentences describe, in unseen films. Variants:

(default)    trained on the moments of 600 films
query_blind  query-blind control: the same with one sentence for all moments
smoke        a few steps of a small model on synthetic batches

`bash examples/grounding_synthetic.sh` makes the data and prints the options that say what the features were made with.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("query_blind", "smoke")
DATA = "runs/data/synthetic/ctrl"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "ctrl_tacos.py", "smoke" if variant == "smoke" else "")
    if variant == "smoke":
        return config
    config.epochs, config.steps = 0, 2000
    config.matmul_precision = "default"
    config.data.windows = f"{DATA}/train_windows"
    config.data.queries = f"{DATA}/{'query_blind' if variant == 'query_blind' else 'moments'}"
    # Windows are counted at 10 frames per second; actions take 18 to 28 frames.
    config.data.context, config.data.context_size = "nearest", 16
    config.data.unique_clips = True
    config.model.dim, config.model.hidden_dim, config.model.projection_std = 256, 256, 0.05
    config.optimizer.epsilon_before_correction = False
    config.schedule.name, config.schedule.warmup_steps = "cosine", 100
    config.checkpoint.every_epochs, config.checkpoint.every_steps = 0, 1000
    config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
    config.evaluate.every_epochs, config.evaluate.names = 0, ()
    held_out = {"windows": f"{DATA}/test_windows", "queries": config.data.queries, "split": "test"}
    rule = {"thresholds": (0.3, 0.5, 0.7), "ks": (1, 5), "count_videos_without_windows": True}
    config.moments = ConfigDict({"synthetic": held_out | rule})
    config.predict = ConfigDict(held_out)
    return config
