"""MIL-NCE on the synthetic world: a small S3D learns actions from narration that is seconds off. Variants:

(default)  four candidates per clip; --config.clips.num_candidates=1 is ordinary contrastive training
quick      120 steps, for the quickstart
short      300 steps on the same videos, for the features of the quickstart of groundnlq
smoke      a few steps of a smaller model on synthetic batches

Clips are never mirrored, since left and right mean something in the synthetic world.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("quick", "short", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    smoke, short = variant == "smoke", variant in ("quick", "short")
    config = sibling(__file__, "milnce_quickstart.py", "smoke" if smoke else "")
    config.clips.num_candidates, config.clips.random_flip = 4, False
    if smoke:
        return config
    data = "runs/data/synthetic_short" if short else "runs/data/synthetic"
    config.batch_size = 64
    config.steps = {"quick": 120, "short": 300}.get(variant, 900)
    config.data.directory = f"{data}/train"
    config.text.vocabulary, config.text.rows = f"{data}/vocabulary.npy", 128
    config.schedule.learning_rate, config.schedule.warmup_steps = 2e-3, 20 if variant == "quick" else 50
    config.checkpoint.every_steps = 300
    held_out = {"directory": f"{data}/test", "split": "test", "windows": 2}
    config.retrieval = ConfigDict(
        {
            "synthetic": held_out | {"frame_order": "filmed"},
            "synthetic_shuffled": held_out | {"frame_order": "shuffled"},
            "synthetic_reversed": held_out | {"frame_order": "reversed"},
        }
    )
    config.evaluate.at_start, config.evaluate.names = short, ("synthetic",)
    return config
