"""SNP-S3 fine-tuned for open-ended questions, MSRVTT-QA with 1,500 answers. Variants:

(default)  Video Swin, sixteen clips of one frame, started from the run on WebVid
pvt        PVTv2-B2 on whole frames of up to 448 pixels, started from the run on COCO and Visual Genome
resnet     ResNet-50 in the same way
smoke      a few steps of a small model on synthetic batches

Published accuracy in %: 43.1; with PVT 42.0; with ResNet-50 41.5.
"""

from ml_collections import ConfigDict

from vlm_jax.systems.snps3.config import default_config, evaluator, fine_tune, smoke

VARIANTS = ("pvt", "resnet", "smoke")
DATA = "data/snps3/msrvtt_qa"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.head = "question_answering"
    fine_tune(config, variant, DATA)
    config.frames.random_scale = False
    config.answers.vocabulary, config.model.num_answers = f"{DATA}/answers.json", 1500
    config.init_fresh = ("^classifier/",)
    config.evaluation = ConfigDict({name: evaluator("answers", DATA, name) for name in ("val", "test")})
    config.evaluate.names = ("val",)
    config.checkpoint.keep_best, config.checkpoint.best_metric = 1, "val/accuracy"
    if variant == "smoke":
        smoke(config)
    return config
