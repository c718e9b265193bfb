"""SNP-S3 pre-trained on CC3M image-text pairs with Video Swin, the first stage of the published model. Variants:

(default)  Video Swin at 224 pixels, started from its published file and bert-base-uncased
pvt        PVTv2-B2 on whole images of up to 768 pixels
resnet     ResNet-50 in the same way
plain      plain masking and no local matching of words: the ablation "MLM + GVTM"
smoke      a few steps of a small model on synthetic batches

After WebVid (configs/snps3_pretrain_webvid.py), the published model finds MSR-VTT's videos with 31.5 / 61.3 / 73.2 %
recall at 1 / 5 / 10 (7k-1k split); the ablation with plain masking reaches 28.7 / 59.4 / 71.1.
"""

from ml_collections import ConfigDict

from vlm_jax.systems.snps3.config import default_config, evaluator, smoke, whole_frames

VARIANTS = ("pvt", "resnet", "plain", "smoke")
DATA = "data/snps3/cc3m"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.data.directories = (DATA,)
    config.text.vocabulary = "data/snps3/vocab.txt"
    config.words.ranks, config.words.groups = "data/snps3/words/ranks.json", "data/snps3/words/groups.json"
    config.frames.clips = 1
    config.steps = 130000
    config.model.dtype = "bfloat16"
    config.evaluation = ConfigDict({"val": evaluator("loss", DATA, "val")})
    config.evaluate.names = ("val",)
    config.checkpoint.keep_best, config.checkpoint.best_metric = 1, "val/total_loss"
    config.checkpoint.best_is_lowest = True
    config.init_fresh = (
        "^similarity/",
        "^word_head/",
        "^text_word_head/",
        "^pair_head/",
        "^visual/(img_fc|output_proj)",
    )
    config.init_from = ("released:bert_base_uncased", "released:video_swin_snps3")
    if variant in ("pvt", "resnet"):
        whole_frames(config, variant, 768)
        released = {"pvt": "pvt_v2_b2", "resnet": "resnet50_imagenet"}[variant]
        config.init_from = ("released:bert_base_uncased", f"released:{released}")
    elif variant == "plain":
        config.words.masking, config.words.matching = False, ""
    elif variant == "smoke":
        smoke(config)
    return config
