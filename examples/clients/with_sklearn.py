"""Scorers of scikit-learn for models that predict distributions: the greater, the better."""

import numpy as np
from sklearn.metrics import make_scorer

from kldiv import kl_divergence


def mean_divergence(labels, probabilities):
    """Return the mean D(label‖prediction); labels are classes 0 … K − 1, or a distribution each."""
    probabilities = np.asarray(probabilities)
    labels = np.asarray(labels)
    if labels.ndim == 1:
        labels = np.eye(probabilities.shape[-1])[labels]
    return float(kl_divergence(labels, probabilities).mean())


classifier_scorer = make_scorer(
    mean_divergence, response_method="predict_proba", greater_is_better=False
)
soft_label_scorer = make_scorer(mean_divergence, greater_is_better=False)
