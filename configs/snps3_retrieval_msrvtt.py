"""SNP-S3 fine-tuned for retrieval on MSR-VTT. Variants:

(default)  Video Swin, sixteen clips of one frame, started from the run on WebVid
pvt        PVTv2-B2 on whole frames of up to 448 pixels, started from the run on COCO and Visual Genome
resnet     ResNet-50 in the same way
9k         9,000 training videos instead of 7,010
smoke      a few steps of a small model on synthetic batches

Published recall at 1 / 5 / 10 in %, text to video: 31.5 / 61.3 / 73.2 (9k: 33.6 / 65.8 / 75.1); with PVT 26.6 / 55.5 /
67.7 (9k: 28.9 / 57.0 / 69.4); with ResNet-50 23.7 / 51.2 / 64.6.
"""

from ml_collections import ConfigDict

from vlm_jax.systems.snps3.config import default_config, evaluator, fine_tune, smoke

VARIANTS = ("9k", "pvt", "resnet", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.head = "retrieval"
    data = "data/snps3/msrvtt_9k" if variant == "9k" else "data/snps3/msrvtt"
    fine_tune(config, variant, data)
    config.evaluation = ConfigDict({name: evaluator("retrieval", data, name) for name in ("val", "test")})
    config.evaluate.names = ("val",)
    config.checkpoint.keep_best, config.checkpoint.best_metric = 1, "val/l2_simi_t2v-mean_recall"
    if variant == "smoke":
        smoke(config)
    return config
