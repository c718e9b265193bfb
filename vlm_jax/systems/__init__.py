"""Systems, one package each, found by fixed module names (`vlm_jax.config.system_module`); nothing lists them.

config       default_config(): all config keys with their published values
task         make_task(config): the system as the training and evaluation loops see it
predict      make_predictor(config, variables, extractor): the predictor that `inference.load` returns
interop      names of the arrays in the reference's checkpoints, and published checkpoints
data         records and batches (TensorFlow)
"""
