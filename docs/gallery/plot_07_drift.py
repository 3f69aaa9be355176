"""
Drift
=====

A table is collected every month, and the question is which columns have changed. Jeffreys' divergence between the
histograms of a month and of the first, often called the population stability index, answers it; 0.1 and 0.25 are the
usual marks of a moderate and of a large change. ``kldiv january.csv june.csv --from samples`` is the same as a command.
"""

import kldiv
import matplotlib.pyplot as plt
import numpy as np

random = np.random.default_rng(7)
months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug"]
rows = 4_000
tables = [
    {
        "age": random.normal(40, 12, rows),
        "income": random.lognormal(10 + 0.04 * month, 0.6, rows),
        "visits": random.poisson(3 + (month > 4), rows),
        "basket": random.gamma(2.0, 20 * (1 + 0.2 * (month == 3)), rows),
        "device": random.choice(
            4, rows, p=[0.4 - 0.03 * month, 0.3, 0.2, 0.1 + 0.03 * month]
        ),
    }
    for month in range(len(months))
]


def index(name, month):
    """Return Jeffreys' divergence of ten bins, each with a tenth of both months' numbers."""
    first, other = tables[0][name], tables[month][name]
    edges = np.unique(
        np.quantile(np.concatenate([first, other]), np.linspace(0, 1, 11))
    )
    edges[-1] += 1e-9
    counts = [np.histogram(sample, edges)[0] for sample in (first, other)]
    return float(kldiv.jeffreys_divergence(*counts, normalize=True))


drift = np.array(
    [[index(name, month) for month in range(1, len(months))] for name in tables[0]]
)

# %%

figure, axes = plt.subplots()
axes.grid(visible=False)
image = axes.imshow(drift, cmap="Oranges", vmin=0, vmax=0.3, aspect="auto")
for (row, column), value in np.ndenumerate(drift):
    colour = "white" if value > 0.18 else "black"
    axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
axes.set_xticks(range(len(months) - 1), months[1:])
axes.set_yticks(range(len(drift)), list(tables[0]))
axes.set_title("Jeffreys' divergence from January, nats")
figure.colorbar(image)
plt.show()
