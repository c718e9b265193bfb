"""SNP-S3 fine-tuned for retrieval on MSVD. Variants:

(default)  Video Swin, sixteen clips of one frame, started from the run on WebVid
pvt        PVTv2-B2 on whole frames of up to 448 pixels, started from the run on COCO and Visual Genome
resnet     ResNet-50 in the same way
smoke      a few steps of a small model on synthetic batches

Published recall at 1 / 5 / 10 in %, text to video: 35.1 / 70.3 / 80.9; with PVT 33.1 / 64.5 / 73.7; with ResNet-50
27.3 / 56.9 / 70.2.
"""

from ml_collections import ConfigDict

from vlm_jax.systems.snps3.config import default_config, evaluator, fine_tune, smoke

VARIANTS = ("pvt", "resnet", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.head = "retrieval"
    data = "data/snps3/msvd"
    fine_tune(config, variant, data)
    config.schedule.learning_rate, config.schedule.boundary_steps = 1e-6, (8000,)
    config.steps, config.checkpoint.every_steps, config.evaluate.every_steps = 16000, 2000, 2000
    config.evaluation = ConfigDict({name: evaluator("retrieval", data, name) for name in ("val", "test")})
    config.evaluate.names = ("val",)
    config.checkpoint.keep_best, config.checkpoint.best_metric = 1, "val/l2_simi_t2v-mean_recall"
    if variant == "smoke":
        smoke(config)
    return config
