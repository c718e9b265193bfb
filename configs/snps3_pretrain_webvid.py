"""SNP-S3 pre-trained on WebVid-2M, the second stage of the published Video Swin model. Variants:

(default)  Video Swin, four clips of one frame, started from the run on CC3M
pvt        PVTv2-B2 on whole frames
resnet     ResNet-50 on whole frames
plain      plain masking and no local matching of words: the ablation "MLM + GVTM"
smoke      a few steps of a small model on synthetic batches

Fine-tuned on MSR-VTT (7k-1k split), the published model reaches recall at 1 / 5 / 10 of 31.5 / 61.3 / 73.2 %, and with
plain masking 28.7 / 59.4 / 71.1 %.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling

VARIANTS = ("pvt", "resnet", "plain", "smoke")
DATA = "data/snps3/webvid"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "snps3_pretrain_cc3m.py", variant)
    if variant == "smoke":
        return config
    config.data.directories, config.evaluation.val.directory = (DATA,), DATA
    config.frames.clips = 4
    config.epochs, config.steps = 10, 0
    config.schedule.boundary_steps, config.schedule.boundary_epochs = (), (5,)
    config.init_from, config.init_fresh = (f"runs/snps3_pretrain_cc3m{variant and '_' + variant}",), ()
    return config
