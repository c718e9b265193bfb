"""Linear classifier on frozen features, the protocol of HMDB-51 (needs the extra `eval`)."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm_jax.errors import MissingPackageError


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Fitted classifier and its decisions on the test videos.

    Attributes:
      classes: Names of the classes, in alphabetical order.
      weights: Weights, `[classes, C]`.
      intercepts: Intercepts, `[classes]`.
      decisions: Decision values of the test videos, summed over windows, `[videos, classes]`.
      accuracy: Fraction of test videos whose largest decision value is that of the true class.
    """

    classes: tuple[str, ...]
    weights: np.ndarray
    intercepts: np.ndarray
    decisions: np.ndarray
    accuracy: float


def require_solver() -> None:
    """Raise MissingPackageError without scikit-learn, before hours of encoding and not after."""
    try:
        import sklearn.svm  # noqa: F401
    except ImportError:
        raise MissingPackageError("the linear probe needs scikit-learn: pip install 'vlm_jax[eval]'") from None


def linear_probe(
    features: np.ndarray, labels: Sequence[str], train: np.ndarray, test: np.ndarray, penalty: float = 100.0
) -> LinearProbe:
    """Fit one-vs-rest linear SVMs (squared hinge, L2, penalised intercept) on every window of the training videos.

    Source: antoine77340/MIL-NCE_HowTo100M, eval_hmdb.py. The objective is strictly convex and has one solution, so it
    is solved in the primal, to convergence.

    Args:
      features: Features of every window, `[videos, W, C]`.
      labels: Class of every video, `[videos]`.
      train: Mask of the training videos, bool `[videos]`.
      test: Mask of the test videos, bool `[videos]`.
      penalty: Penalty parameter C of the SVM.

    Raises:
      MissingPackageError: If scikit-learn is not installed.
    """
    require_solver()
    from sklearn.svm import LinearSVC

    classes, numbers = np.unique(np.asarray(labels), return_inverse=True)
    windows = features.shape[1]
    samples = features[train].reshape(-1, features.shape[-1])
    classifier = LinearSVC(C=penalty, dual=False, tol=1e-8, max_iter=10000)
    classifier.fit(samples, np.repeat(numbers[train], windows))
    scores = classifier.decision_function(features[test].reshape(-1, features.shape[-1]))
    if scores.ndim == 1:
        scores = np.stack([-scores, scores], 1)
    decisions = scores.reshape(-1, windows, scores.shape[-1]).sum(1)
    accuracy = float(np.mean(classifier.classes_[decisions.argmax(1)] == numbers[test]))
    return LinearProbe(
        tuple(map(str, classes)), classifier.coef_, np.atleast_1d(classifier.intercept_), decisions, accuracy
    )
