"""Packaging of vlm_jax."""

import re
from pathlib import Path

from setuptools import find_packages, setup

VIDEO = ["av>=18"]
DATA = ["tensorflow-cpu>=2.20; platform_machine == 'x86_64'", "tensorflow>=2.20; platform_machine != 'x86_64'"]
DATA += ["tensorflow-datasets>=4.9.9"]
BEAM = ["apache-beam>=2.60"]
EVAL = ["scikit-learn>=1.5"]
LMDB = ["lmdb>=1.6"]
FIGURES = ["matplotlib>=3.9", "pillow>=10.1"]
PEOPLE = ["opencv-python-headless>=4.10,<5"]  # OpenCV 5 has no people detector
TEXT = ["sentencepiece>=0.2"]
WORDS = ["spacy>=3.8", "nltk>=3.9"]
TENSORBOARD = ["tensorboard>=2.19"]
TESTS = ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9"]

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "vlm_jax" / "__init__.py").read_text(encoding="utf-8")).group(1)

setup(
    name="vlm_jax",
    version=VERSION,
    description="Video-language systems in JAX with their references' exact numbers",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["vlm_jax", "vlm_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12,<1.0",
        "ml_collections>=1.1",
        "numpy>=2.1",
        "tqdm>=4.66",
    ],
    extras_require={
        "cpu": ["jax>=0.10.2"],
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2"],
        "data": DATA,
        "video": VIDEO,
        "beam": BEAM,
        "eval": EVAL,
        "lmdb": LMDB,
        "figures": FIGURES,
        "people": PEOPLE,
        "text": TEXT,
        "words": WORDS,
        "tensorboard": TENSORBOARD,
        "test": [*DATA, *VIDEO, *BEAM, *EVAL, *LMDB, *FIGURES, *PEOPLE, *TEXT, *TESTS],
    },
)
