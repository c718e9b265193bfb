"""The systems, one package each, found by fixed module names (`vlm_jax.config.system_module`); nothing lists them.

config       default_config(): every key of the system, with the published sizes
task         make_task(config): what the training and evaluation loops know
predict      make_predictor(config, variables, extractor): what `inference.load` returns
interop      names and published files of the reference's checkpoints
data         records and batches (TensorFlow)
"""
