"""SNP-S3 on the packaged clips and a small synthetic world: the whole chain in minutes on a laptop's CPU. Variants:

(default)           pre-training on parts of synthetic videos, mixed with captions of the packaged clips
retrieval           fine-tuned for retrieval, on the same mixture
question_answering  fine-tuned for open-ended questions about the synthetic videos
smoke               a few steps of a smaller model on synthetic batches

The packaged clips are evaluated as they were trained on, so their numbers only show that the chain works.
"""

from ml_collections import ConfigDict

from vlm_jax.config import sibling
from vlm_jax.systems.snps3.config import evaluator, visual_network

VARIANTS = ("retrieval", "question_answering", "smoke")
DATA = "runs/data/snps3_quickstart"
PRETRAINED = "runs/quickstart-snps3-pretraining"


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = sibling(__file__, "snps3_synthetic.py", variant)
    if variant == "smoke":
        return config
    config.batch_size, config.batch_groups, config.data.streams = 16, 4, 4
    config.text.vocabulary = f"{DATA}/vocab.txt"
    config.words.ranks, config.words.groups = f"{DATA}/words/ranks.json", f"{DATA}/words/groups.json"
    config.words.top = 60
    # Left and right mean something in the synthetic videos, and colours too: nothing is mirrored or recoloured.
    crop = {"form": "crop", "clips": 4, "size": 64, "short_side": (64, 64), "evaluation_short_side": 64, "flip": 0.0}
    config.frames.update(crop)
    config.frames.augment.operations = 0
    config.model.update({"features": 96, "layers": 2, "heads": 4, "hidden": 256})
    config.model.visual = visual_network("swin", features=24, depths=(1, 1, 1), heads=(1, 2, 4), drop_path=0.0)
    config.momentum.text_queue, config.momentum.clip_queue = 240, 960
    config.schedule.learning_rate, config.schedule.warmup_steps = 1e-3, 20
    config.steps, config.log_every = 240, 40
    config.checkpoint.every_steps = 120
    config.evaluate.batch_size = 24
    if config.head == "question_answering":
        config.answers.vocabulary = f"{DATA}/answers.json"
        config.data.directories = (f"{DATA}/questions",)
        config.evaluation = ConfigDict({"questions": evaluator("answers", f"{DATA}/questions")})
    else:
        # One example in three is a moment of the packaged clips.
        config.data.directories, config.data.weights = (f"{DATA}/captions", f"{DATA}/clips"), (2, 1)
        config.evaluation = ConfigDict(
            {
                "synthetic": evaluator("retrieval", f"{DATA}/captions"),
                "clips": evaluator("retrieval", f"{DATA}/clips"),
            }
        )
    config.evaluate.names = ()
    if config.head != "pretraining":
        config.init_from = (PRETRAINED,)
        config.schedule.learning_rate, config.steps = 5e-4, 150
    if config.head == "retrieval":
        # Level 2 compares the examples of a group; groups of eight have several moments of the clips.
        config.batch_groups = 2
        config.evaluation.choices = evaluator("choices", f"{DATA}/choices")
    return config
