"""SNP-S3 pre-trained on the images of COCO and Visual Genome with PVTv2-B2. Variants:

(default)  PVTv2-B2 on whole images of up to 768 pixels, started from its published file and bert-base-uncased
resnet     ResNet-50 in the same way, for 400,000 steps
swin       Video Swin at 224 pixels
plain      plain masking and no local matching of words: the ablation "MLM + GVTM"
smoke      a few steps of a small model on synthetic batches

Fine-tuned on MSR-VTT (7k-1k split), the published models have recall at 1 / 5 / 10 of 26.6 / 55.5 / 67.7 % with PVT and
23.7 / 51.2 / 64.6 % with ResNet-50; with plain masking 25.0 / 52.3 / 64.1 and 21.7 / 47.8 / 61.4.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("resnet", "swin", "plain", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    beside = {"swin": "", "smoke": "smoke", "resnet": "resnet"}.get(variant, "pvt")
    config = sibling(__file__, "snps3_pretrain_cc3m.py", beside)
    if variant == "smoke":
        return config
    config.data.directories, config.data.weights = ("data/snps3/coco", "data/snps3/vg"), ()
    config.evaluation.val.directory = "data/snps3/coco"
    if variant == "resnet":
        config.steps, config.schedule.boundary_steps = 400000, (150000,)
    if variant == "plain":
        config.words.masking, config.words.matching = False, ""
    return config
