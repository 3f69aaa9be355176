"""The mean KL divergence of rows of logits as a metric of Keras, on NumPy, PyTorch and JAX."""

import keras
import numpy as np

from kldiv import metrics


class KLDivergence(keras.metrics.Metric):
    """The mean KL divergence of rows of logits, the teacher's being the target."""

    def __init__(self, name="kl_divergence", **options):
        super().__init__(name=name)
        self.own = metrics.KLDivergence(**options)
        self.moments = self.add_variable((11,), "zeros", dtype="float32", name="moments")
        self.reset_state()

    def reset_state(self):
        self.moments.assign(metrics.moments(np.zeros(0)))

    def update_state(self, y_true, y_pred, sample_weight=None):
        more = metrics.moments(self.own.rows(y_pred, y_true), row_weight=sample_weight)
        more = keras.ops.cast(more, "float32")
        self.moments.assign(metrics.merge_moments(self.moments.value, more))

    def result(self):
        return metrics.mean_of(self.moments.value)
