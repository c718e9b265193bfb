"""SNP-S3 fine-tuned for open-ended questions, MSVD-QA with 1,000 answers. Variants:

(default)  Video Swin, sixteen clips of one frame, started from the run on WebVid
pvt        PVTv2-B2 on whole frames of up to 448 pixels, started from the run on COCO and Visual Genome
resnet     ResNet-50 in the same way
smoke      a few steps of a small model on synthetic batches

Published accuracy in %: 47.1; with PVT 46.2; with ResNet-50 44.9.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("pvt", "resnet", "smoke")
DATA = "data/snps3/msvd_qa"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "snps3_qa_msrvtt.py", variant)
    config.data.directories = (DATA,)
    if variant == "smoke":
        return config
    config.answers.vocabulary, config.model.num_answers = f"{DATA}/answers.json", 1000
    config.schedule.boundary_steps = (10000,)
    config.steps, config.checkpoint.every_steps, config.evaluate.every_steps = 18000, 2000, 2000
    for name in ("val", "test"):
        config.evaluation[name].directory = DATA
    return config
