"""The toy's predictor."""

import numpy as np
from vlm_jax.systems.toy.task import make_task

from vlm_jax.predictor import Predictor


def make_predictor(config, variables, extractor):
    """Return what `inference.load` gives for a checkpoint of the toy."""
    del extractor
    return ToyPredictor(config, variables)


class ToyPredictor(Predictor):
    """A linear map, restored."""

    def predict(self, x):
        """Map `x` `[N, 4]` to `y` `[N, 2]`."""
        encode = self.compile(make_task(self.config).encoders["y"])
        return np.asarray(encode(self.variables, {"x": np.asarray(x, np.float32)})["y"])
