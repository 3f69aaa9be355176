"""
Forward and reverse
===================

P has two peaks, Q is a normal distribution. Minimising D(P‖Q), forward KL, makes Q cover whatever P has; minimising
D(Q‖P), reverse KL, makes it seek one peak. Jensen-Shannon lies between. Language models are distilled with all three.
"""

import kldiv
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import minimize

x = np.linspace(-6, 6, 601)


def normal(location, scale):
    """Return the logits of a normal distribution on the grid."""
    return -0.5 * ((x - location) / scale) ** 2


teacher = np.log(0.6 * np.exp(normal(-2.0, 0.6)) + 0.4 * np.exp(normal(2.2, 0.8)))

losses = {
    "forward, D(P‖Q)": lambda q: kldiv.kl_div_with_logits(q, teacher),
    "reverse, D(Q‖P)": lambda q: kldiv.kl_div_with_logits(teacher, q),
    "Jensen-Shannon": lambda q: kldiv.js_div_with_logits(q, teacher),
}


def fit(loss):
    """Return the location and the scale of the best normal distribution, from three starts."""
    starts = [(location, 0.0) for location in (-2.0, 0.0, 2.0)]
    found = (
        minimize(
            lambda at: loss(normal(at[0], np.exp(at[1]))),
            start,
            method="Nelder-Mead",
        )
        for start in starts
    )
    location, log_scale = min(found, key=lambda result: result.fun).x
    return location, np.exp(log_scale)


# %%

figure, axes = plt.subplots()


def density(logits):
    """Return the density on the grid."""
    weights = np.exp(logits - logits.max())
    return weights / weights.sum() / (x[1] - x[0])


axes.fill_between(x, density(teacher), color="#cbd5e1", label="P")
for name, loss in losses.items():
    location, scale = fit(loss)
    axes.plot(
        x,
        density(normal(location, scale)),
        label=f"{name}: {location:.2f} ± {scale:.2f}",
    )
axes.set_title("The normal distribution nearest to P, by three divergences")
axes.set_yticks([])
axes.legend()
plt.show()
