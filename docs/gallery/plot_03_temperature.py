"""
Temperature
===========

A temperature T divides both logits. The softened teacher shows which wrong classes it holds for nearly right, and the
gradient gets smaller, about as 1/T²: one factor T as logits are divided by it, one as the softened distributions are that
much closer. ``scale_by_temperature=True`` of ``distillation_loss`` multiplies it back; nothing else does.
"""

import kldiv
import matplotlib.pyplot as plt
import numpy as np

teacher = np.array([6.0, 4.0, 3.0, 0.5, 0.0, -1.0])
student = np.array([4.0, 4.5, 1.0, 1.0, 0.5, 0.0])
temperatures = np.geomspace(0.5, 20, 60)

figure, (left, right) = plt.subplots(1, 2)
classes = np.arange(len(teacher))
for place, temperature in enumerate((1, 2, 4, 8)):
    p = np.exp(teacher / temperature)
    left.bar(
        classes + 0.2 * (place - 1.5),
        p / p.sum(),
        width=0.2,
        label=f"T = {temperature}",
    )
left.set_title("The teacher, softened")
left.set_xlabel("class")
left.legend()

gradient_of = kldiv.value_and_grad(kldiv.kl_div_with_logits)
sizes = [
    np.linalg.norm(gradient_of(student, teacher, temperature=t)[1])
    for t in temperatures
]
right.loglog(temperatures, sizes, label="gradient")
right.loglog(temperatures, sizes * temperatures**2, label="gradient × T²")
right.set_title("The size of the student's gradient")
right.set_xlabel("temperature")
right.legend()
plt.show()
