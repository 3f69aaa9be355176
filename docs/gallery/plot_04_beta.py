"""
β between the two directions
============================

``distillation_loss`` has β from 0, forward KL, to 1, reverse KL; between them lies the Jensen-Shannon divergence
βD(P‖M) + (1−β)D(Q‖M) with M = βP + (1−β)Q. That goes to 0 at both ends, so the loss jumps there: the ends are other
divergences, by the convention of trainers.
"""

import kldiv
import matplotlib.pyplot as plt
import numpy as np

random = np.random.default_rng(1)
teacher = random.normal(0, 2, (64, 200))
betas = np.linspace(0.005, 0.995, 100)

figure, axes = plt.subplots()
for colour, distance in zip(
    ("#0b5cad", "#c2410c", "#15803d"), (0.3, 0.6, 1.0), strict=True
):
    student = teacher + random.normal(0, distance, teacher.shape)
    values = [
        float(kldiv.distillation_loss(student, teacher, beta=beta))
        for beta in betas
    ]
    axes.semilogy(betas, values, color=colour, label=f"logits differ by {distance}")
    ends = [
        float(kldiv.distillation_loss(student, teacher, beta=beta))
        for beta in (0.0, 1.0)
    ]
    axes.plot([0, 1], ends, "o", color=colour)
axes.set_xlabel("β")
axes.set_ylabel("loss, nats a token")
axes.set_title(
    "Curves: Jensen-Shannon; dots: forward (β = 0) and reverse KL (β = 1)"
)
axes.legend()
plt.show()
