"""Keras' loss and layer of a KL divergence of logits, on NumPy, PyTorch and JAX (Keras 3)."""

import keras

import kldiv


@keras.saving.register_keras_serializable("kldiv")
class KLDivergence(keras.losses.Loss):
    """D(teacher‖student) of logits, the teacher's being the target.

    Its result has one number a row, which Keras weighs and averages.
    """

    def __init__(self, temperature=1.0, name="kl_divergence", **options):
        super().__init__(name=name, **options)
        self.temperature = temperature

    def call(self, y_true, y_pred):
        """Return the divergence of each row."""
        return kldiv.kl_div_with_logits(
            y_pred, y_true, temperature=self.temperature, reduction="none"
        )

    def get_config(self):
        """Return the settings that a saved model needs."""
        return {**super().get_config(), "temperature": self.temperature}


@keras.saving.register_keras_serializable("kldiv")
class Divergence(keras.layers.Layer):
    """The divergence of each row of two outputs of a functional model, and its mean as a loss."""

    def call(self, student, teacher):
        """Add the loss, and return the rows'."""
        rows = kldiv.kl_div_with_logits(student, teacher, reduction="none")
        self.add_loss(keras.ops.mean(rows))
        return rows
