"""SNP-S3 on the synthetic world (examples/snps3_synthetic.sh prepares it): a small model of all four kinds. Variants:

(default)          pre-training on parts of videos: masked significant words (MSSM) and local matching of words (LVWM)
plain              any word is masked, no local matching
retrieval          fine-tuned for retrieval
question_answering fine-tuned for open-ended questions
multiple_choice    fine-tuned for questions with five options
smoke              a few steps of a smaller model on synthetic batches
"""

from ml_collections import ConfigDict

from vlm_jax.systems.snps3.config import default_config, evaluator, smoke, visual_network

VARIANTS = ("plain", "retrieval", "question_answering", "multiple_choice", "smoke")
DATA = "runs/data/snps3_synthetic"
EVALUATIONS = {
    "pretraining": ("retrieval", "retrieval"),
    "retrieval": ("retrieval", "retrieval"),
    "question_answering": ("answers", "questions"),
    "multiple_choice": ("choices", "choices"),
}
"""Kind of evaluation and folder of the data of each head."""


def get_config(variant: str = "") -> ConfigDict:
    """Return the config of a variant."""
    config = default_config()
    config.head = variant if variant in EVALUATIONS else "pretraining"
    kind, folder = EVALUATIONS[config.head]
    config.batch_size, config.batch_groups, config.data.streams = 32, 8, 8
    config.data.directories = (f"{DATA}/{'pretraining' if config.head == 'pretraining' else folder}",)
    config.text.vocabulary, config.text.length = f"{DATA}/vocab.txt", 26
    config.words.ranks, config.words.groups = f"{DATA}/words/ranks.json", f"{DATA}/words/groups.json"
    config.words.top = 40
    config.frames.clips, config.frames.max_size, config.frames.random_scale = 2, 64, False
    config.frames.form, config.frames.heights, config.frames.widths = "whole", (64,), (64,)
    config.model.update({"features": 128, "layers": 2, "heads": 4, "hidden": 512, "dropout": 0.0})
    config.model.visual = visual_network("resnet", blocks=(1, 1, 1, 1), width=0.25)
    config.momentum.decay, config.momentum.text_queue, config.momentum.clip_queue = 0.99, 1024, 4096
    config.schedule.name, config.schedule.learning_rate = "cosine", 1e-3
    config.schedule.warmup_steps, config.schedule.boundary_steps = 100, ()
    config.steps, config.log_every = 1500, 100
    config.checkpoint.every_steps, config.checkpoint.keep = 500, 1
    config.evaluate.every_steps, config.evaluate.names = 0, ("val",)
    config.evaluate.batch_size = 32
    config.evaluation = ConfigDict({name: evaluator(kind, f"{DATA}/{folder}", name) for name in ("val", "test")})
    if config.head != "pretraining":
        config.init_from, config.init_fresh = ("runs/snps3_synthetic",), ()
        config.schedule.learning_rate, config.steps = 2e-4, 600
    if config.head == "question_answering":
        config.answers.vocabulary, config.init_fresh = f"{DATA}/answers.json", ("^classifier/",)
    if variant == "plain":
        config.words.masking, config.words.matching = False, ""
    if variant == "smoke":
        smoke(config)
    return config
