"""SNP-S3 fine-tuned for open-ended questions, MSVD-QA with 1,000 answers. Variants:

(default)  Video Swin, sixteen clips of one frame, started from the run on WebVid
pvt        PVTv2-B2 on whole frames of up to 448 pixels, started from the run on COCO and Visual Genome
resnet     ResNet-50 in the same way
smoke      a few steps of a small model on synthetic batches

Published accuracy in %: 47.1; with PVT 46.2; with ResNet-50 44.9.
"""

from ml_collections import ConfigDict

from vlm_jax.systems.snps3.config import default_config, evaluator, fine_tune, smoke

VARIANTS = ("pvt", "resnet", "smoke")
DATA = "data/snps3/msvd_qa"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.head = "question_answering"
    fine_tune(config, variant, DATA)
    config.frames.random_scale = False
    config.answers.vocabulary, config.model.num_answers = f"{DATA}/answers.json", 1000
    config.init_fresh = ("^classifier/",)
    config.schedule.boundary_steps = (10000,)
    config.steps, config.checkpoint.every_steps, config.evaluate.every_steps = 18000, 2000, 2000
    config.evaluation = ConfigDict({name: evaluator("answers", DATA, name) for name in ("val", "test")})
    config.evaluate.names = ("val",)
    config.checkpoint.keep_best, config.checkpoint.best_metric = 1, "val/accuracy"
    if variant == "smoke":
        smoke(config)
    return config
