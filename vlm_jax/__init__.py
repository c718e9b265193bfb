"""Video-language systems in JAX and Flax with their references' exact numbers.

`vlm_jax.inference.load` returns the predictor of a run, a converted checkpoint or `released:NAME`. One training loop
(`vlm_jax.train.loop`), one input pipeline (`vlm_jax.data`) and one form of checkpoints serve every system of
`vlm_jax.systems`.
"""

__version__ = "0.1.0"
