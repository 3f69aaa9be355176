"""
Wind and horse kicks
====================

``fitting.rank`` fits families of distributions and ranks them by the divergence from the data to each, judged on points
that the fit has not seen. Two published samples: wind speeds in New York in 1973, and soldiers of the Prussian cavalry
killed by the kick of a horse (Bortkiewicz 1898). Both files are in ``examples/fit`` of the repository.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from kldiv import fitting
from scipy import stats

root = next(
    path for path in Path.cwd().parents if (path / "examples" / "fit").is_dir()
)
wind = np.loadtxt(root / "examples/fit/wind.csv", skiprows=1)
kicks = np.loadtxt(root / "examples/fit/horse_kicks.csv", skiprows=1, dtype=int)

ranking = fitting.rank(wind, ["Weibull", "Normal", "Gamma", "LogNormal"])
print(ranking)

# %%

of_kicks = fitting.rank(kicks)
print(of_kicks)

# %%

figure, (left, right) = plt.subplots(1, 2)
left.hist(wind, bins=16, density=True, color="#cbd5e1")
grid = np.linspace(0.1, wind.max() + 3, 300)
for fit in ranking.fits[:3]:
    left.plot(
        grid,
        np.exp(fit.log_likelihoods(grid)),
        label=f"{fit.family}, +{fit.behind:.3f}",
    )
left.set_title("Wind speed, miles per hour")
left.legend(title="nats behind the best")

values = np.arange(kicks.max() + 1)
right.bar(values, np.bincount(kicks) / len(kicks), color="#cbd5e1")
rate = of_kicks.best.parameters["rate"]
right.plot(
    values, stats.poisson.pmf(values, rate), "o", label=f"Poisson({rate:.2f})"
)
right.set_title("Deaths in a corps in a year")
right.set_xticks(values)
right.legend()
plt.show()
