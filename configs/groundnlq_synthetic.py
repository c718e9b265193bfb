"""GroundNLQ on the synthetic world: a small model finds the moments that sentences describe, in unseen films. Variants:

(default)    from scratch, on 240 moments of 16 films
pretrain     on narration that is seconds off, in all 600 films
finetune     from a pre-trained model (config.init_from), on the same moments as from scratch
query_blind  query-blind control: on the moments of all films, with one sentence for all of them
short        on 480 moments of a smaller world, for the quickstart
smoke        a few steps of a smaller model on synthetic batches

`bash examples/grounding_synthetic.sh` makes the data and prints the options that say what the features were made with.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("pretrain", "finetune", "query_blind", "short", "smoke")
DATA = "runs/data/synthetic/groundnlq"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "groundnlq_scratch.py", "smoke" if variant == "smoke" else "")
    if variant == "smoke":
        return config
    data = DATA.replace("synthetic", "synthetic_short") if variant == "short" else DATA
    train = {"pretrain": "narration", "query_blind": "query_blind"}.get(variant, "few")
    test = "query_blind" if variant == "query_blind" else "moments"
    config.seed = 1
    config.batch_size, config.batch_groups = 16, 1
    config.epochs, config.schedule.warmup_epochs = 0, 0
    config.steps = {"pretrain": 750, "short": 600}.get(variant, 450)
    config.schedule.warmup_steps = 100
    config.schedule.learning_rate = 1e-3
    config.matmul_precision = "default"
    config.data.features = f"{data}/train_clips"
    config.data.queries = f"{data}/{train}"
    config.data.jitter = variant == "pretrain"
    # Films last 60 to 76 seconds, and positions are 0.4 seconds apart.
    config.data.buckets, config.model.max_length = (208,), 208
    config.text.max_tokens = 16
    config.model.dim = config.model.head_dim = 64
    config.model.text_blocks, config.model.stem_blocks, config.model.plain_blocks = 2, 2, 4
    config.model.ranges = ((0, 4), (2, 8), (4, 16), (8, 32), (16, 10000))
    config.loss.first_normaliser = 50.0
    config.decoding.half_feature_shift = False
    config.checkpoint.every_epochs, config.checkpoint.every_steps = 0, 150
    config.checkpoint.keep_best, config.checkpoint.best_metric = 0, ""
    config.evaluate.every_epochs, config.evaluate.names = 0, ()
    held_out = {"features": f"{data}/test_clips", "queries": f"{data}/{test}", "split": "test"}
    rule = {"thresholds": (0.3, 0.5, 0.7), "ks": (1, 5)}
    config.moments = ConfigDict({"synthetic": held_out | rule})
    if variant == "short":
        config.moments.synthetic_query_blind = ConfigDict(held_out | rule | {"queries": f"{data}/query_blind"})
    config.predict = ConfigDict(held_out)
    if variant == "finetune":
        config.init_from = ("runs/grounding/groundnlq-pretrained-1",)
        config.init_fresh = sibling(__file__, "groundnlq_finetune.py", "train").init_fresh
    return config
