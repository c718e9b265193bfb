"""Config of GroundNLQ with the published sizes and recipe (houzhijian/GroundNLQ, NLQ v2 from scratch)."""

from typing import Any

from ml_collections import ConfigDict

from vlm_jax.config import base_config
from vlm_jax.data.protocol import find_protocol

DESCRIBED = (
    "model.video_dim",
    "model.text_dim",
    "data.feature_stride",
    "data.fps",
    "data.video_source",
    "data.text_source",
    "data.video_features",
    "data.text_features",
)
"""Keys that the training data decide; evaluation and prediction take them from the run."""

MAY_CHANGE = (
    "moments",
    "predict",
    "decoding",
    "data.features",
    "data.queries",
    "data.video_features.checkpoint",
    "data.text_features.checkpoint",
)
"""Keys that may differ when a run is resumed: evaluation, prediction and paths of data."""


def describe(config: ConfigDict) -> dict[str, Any]:
    """Return the values of config keys that the training data state about themselves."""
    found: dict[str, Any] = {}
    if clips := find_protocol(config.data.features):
        found["model.video_dim"] = clips["feature_dim"]
        found |= {f"data.{key}": clips[key] for key in ("feature_stride", "fps", "video_source")}
        found["data.video_features"] = clips.get("video_features", {})
    if queries := find_protocol(config.data.queries):
        found |= {"model.text_dim": queries["text_dim"], "data.text_source": queries["text_source"]}
        found["data.text_features"] = queries.get("text_features", {})
    return found


def default_config() -> ConfigDict:
    """Return the published configuration, not locked."""
    config = base_config()
    config.task = "groundnlq"
    config.seed = 12345678
    config.batch_size, config.batch_groups = 4, 2
    # 5 epochs of warm-up, then 8.
    config.epochs, config.schedule.warmup_epochs = 13, 5
    config.matmul_precision = "highest"
    config.data.features = "data/ego4d/features"
    config.data.queries = "data/ego4d/queries"
    # Several splits are joined by '+'.
    config.data.split = "train"
    # Origin of the features of clips and words, '' and {} for the released ones. The data state it themselves, as well
    # as their sizes, stride and rate, see `describe`.
    config.data.video_source, config.data.text_source = "", ""
    config.data.video_features, config.data.text_features = ConfigDict({}), ConfigDict({})
    # Frames from one position to the next. The true spacing of the released features is nearer 16.
    config.data.feature_stride, config.data.fps = 16.043, 30.0
    # Type of clips in memory; 'bfloat16' and 'float16' take half as much.
    config.data.dtype = "float32"
    # Lengths that batches are padded to, in positions. The reference has (2560,); the answers are the same.
    config.data.buckets = (1024, 1536, 2048, 2560)
    # If true, targets are dilated and shifted at random.
    config.data.jitter = False
    config.text = ConfigDict({"max_tokens": 32})
    config.model = ConfigDict(
        {
            "video_dim": 2304,
            "text_dim": 512,
            "dim": 384,
            "head_dim": 384,
            "heads": 4,
            "embedding_layers": 2,
            "text_blocks": 4,
            "stem_blocks": 4,
            # Number of pyramid blocks that attend to the words (all six in GroundNLQ*), and of those that do not.
            "cross_blocks": 0,
            "plain_blocks": 6,
            "windows": (9,),
            "max_length": 2560,
            "position_table": True,
            "relative_bias": False,
            # Kernel sizes of the video's embedding convolutions and of the heads' convolutions, and layer norms.
            "embedding_kernel": 3,
            "embedding_norm": True,
            "neck_norm": True,
            "head_kernel": 3,
            "head_layers": 3,
            "head_norm": True,
            # Questions have one class; more are for checkpoints of models with several classes.
            "classes": 1,
            "prior": 0.01,
            "empty_classes": (),
            "drop_path": 0.1,
            # Range of each level: distance in positions from a point to the farther end of its segment.
            "ranges": ((0, 4), (2, 8), (4, 16), (8, 32), (16, 64), (32, 128), (64, 10000)),
            "dtype": "float32",
        }
    )
    config.loss = ConfigDict({"first_normaliser": 200.0, "label_smoothing": 0.1, "offset_weight": 1.0, "radius": 1.5})
    config.decoding = ConfigDict(
        {
            "score_threshold": 0.001,
            "candidates_per_level": 2000,
            "duration_threshold": 0.001,
            # 'soft' lowers the scores of segments that overlap a better one, by `decay`; 'hard' drops them; 'none'
            # keeps all candidates, level after level.
            "suppression": "soft",
            "min_score": 0.001,
            # IoU from which on 'hard' drops segments and the decays 'linear' and 'hard' act.
            "overlap": 0.1,
            "decay": "gaussian",
            "sigma": 0.75,
            "max_moments": 5,
            # If true, segments are suppressed within their class only. If false, moments move to the mean of the
            # candidates whose IoU with them is `vote` or more; 0 for no voting.
            "per_class": True,
            "vote": 0.0,
            # The released models are evaluated with this shift, although targets lack it.
            "half_feature_shift": True,
        }
    )
    config.optimizer.name = "adamw"
    config.optimizer.weight_decay = 0.05
    config.optimizer.groups = ((r"(bias|scale|level_scale_\d+)$", 1.0, 0.0),)
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.999
    config.schedule.name = "cosine"
    config.schedule.learning_rate, config.schedule.final_learning_rate = 1e-4, 1e-8
    config.schedule.warmup_inclusive = True
    config.checkpoint.every_epochs, config.checkpoint.keep = 1, 2
    config.evaluate.batch_size = 16
    # Number of questions that the reference evaluates at the same time; each is padded to the longest of them.
    config.evaluate.reference_batch = 16
    # Evaluators by name.
    config.moments = ConfigDict({})
    # Data of launch/predict.py: clips, and the questions about clips that are listed without any.
    config.predict = ConfigDict({"features": "data/ego4d/features", "queries": "data/ego4d/queries", "split": "test"})
    return config
