"""
The tail of a sparse teacher
============================

Serving engines give the K likeliest log-probabilities of a teacher and nothing else. The mass of all other classes is
known all the same, and ``topk_kl_div_with_logits`` counts it as one more class. Dropping it, or renormalising the K given
classes, gives another loss, far off for small K.
"""

import kldiv
import matplotlib.pyplot as plt
import numpy as np

random = np.random.default_rng(5)
teacher = 1.5 * random.normal(size=(200, 5_000))
student = 0.7 * teacher + random.normal(0, 0.3, teacher.shape)
truth = float(kldiv.kl_div_with_logits(student, teacher))

sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
found = {"tail in one class": [], "renormalised": [], "tail dropped": []}
log_q = student - np.log(np.exp(student).sum(-1, keepdims=True))
for size in sizes:
    sparse = kldiv.topk_log_probs(teacher, size)
    for name, tail in (
        ("tail in one class", "bucket"),
        ("renormalised", "renormalize"),
    ):
        loss = kldiv.topk_kl_div_with_logits(student, sparse, tail=tail)
        found[name].append(float(loss))
    q = np.take_along_axis(log_q, sparse.indices, -1)
    dropped = (np.exp(sparse.log_probs) * (sparse.log_probs - q)).sum(-1)
    found["tail dropped"].append(dropped.mean())

# %%
# With the tail the value is a lower bound that grows to the divergence of all classes: classes were merged, nothing was
# left out. Without it the value may even be negative.

figure, axes = plt.subplots()
for name, values in found.items():
    axes.semilogx(sizes, values, marker="o", markersize=4, label=name, base=2)
axes.axhline(
    truth, color="#475569", linewidth=1, linestyle="--", label="all 5,000 classes"
)
axes.set_xlabel("classes given, K")
axes.set_ylabel("divergence, nats a row")
axes.set_title("What a teacher's K likeliest classes tell")
axes.legend()
plt.show()
