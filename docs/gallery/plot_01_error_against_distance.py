"""
The error against the distance
==============================

The closer a student comes to its teacher, the fewer digits the usual formula has. Its terms p·(log p − log q) are of both
signs and cancel down to their square, while each log-probability has been rounded already. ``kl_div_with_logits`` adds
terms that are never negative, and stays at the rounding of its dtype.
"""

import kldiv
import matplotlib.pyplot as plt
import numpy as np


def usual(student, teacher):
    """Return Σ p (log p − log q) in the dtype of the logits, as most losses are written."""

    def log_softmax(x):
        shifted = x - x.max()
        return shifted - np.log(np.exp(shifted).sum(dtype=x.dtype), dtype=x.dtype)

    log_p, log_q = log_softmax(teacher), log_softmax(student)
    return (np.exp(log_p) * (log_p - log_q)).sum(dtype=teacher.dtype)


random = np.random.default_rng(0)
distances = 10.0 ** np.arange(0, -7.5, -0.5)
teacher = random.normal(0, 3, 32_000).astype(np.float32)
noise = random.normal(0, 1, 32_000)
errors = {"the usual formula": [], "kl_div_with_logits": []}
for distance in distances:
    student = (teacher + distance * noise).astype(np.float32)
    # float64 has digits to spare here; the accuracy page compares with 50-digit arithmetic.
    truth = kldiv.kl_div_with_logits(student.astype(float), teacher.astype(float))
    for name, function in zip(
        errors, (usual, kldiv.kl_div_with_logits), strict=True
    ):
        errors[name].append(
            max(abs(float(function(student, teacher)) / truth - 1), 1e-9)
        )

# %%
# Above 1, the grey line, an error is larger than the divergence itself.

figure, axes = plt.subplots()
for name, values in errors.items():
    axes.loglog(distances, values, marker="o", markersize=4, label=name)
axes.axhline(1, color="#475569", linewidth=1, linestyle="--")
axes.invert_xaxis()
axes.set_xlabel("size of the difference of the logits")
axes.set_ylabel("relative error, float32")
axes.set_title("32,000 classes: every digit, or none")
axes.legend(loc="center right")
plt.show()
