"""Records and pipelines; the only importer of TensorFlow in the package, here without its start-up notices."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
