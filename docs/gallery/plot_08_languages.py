"""
Languages by their letters
==========================

The letters of seven languages, from published counts, compared in all pairs. Jensen-Shannon's square root is a metric, so
clustering by it is meaningful; the Nordic languages find each other.
"""

import csv
from pathlib import Path

import kldiv
import matplotlib.pyplot as plt
import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

folder = next(
    path / "examples/letters"
    for path in Path.cwd().parents
    if (path / "examples").is_dir()
)
counts = {}
for path in sorted(folder.glob("*.csv")):
    with path.open(encoding="utf-8", newline="") as file:
        counts[path.stem.capitalize()] = {
            row["letter"]: int(row["count"]) for row in csv.DictReader(file)
        }
letters = sorted(set().union(*counts.values()))
table = np.array(
    [[count.get(letter, 0) for letter in letters] for count in counts.values()]
)

first, second = (
    np.broadcast_to(table[at], (len(table), *table.shape))
    for at in (np.s_[:, None], np.s_[None])
)
divergence = kldiv.js_divergence(first, second, normalize=True, base=2)

# %%

order = leaves_list(
    linkage(squareform(np.sqrt(divergence), checks=False), "average")
)
names = np.array(list(counts))[order]
figure, axes = plt.subplots(figsize=(7, 5.4))
axes.grid(visible=False)
image = axes.imshow(divergence[np.ix_(order, order)], cmap="Blues")
for (row, column), value in np.ndenumerate(divergence[np.ix_(order, order)]):
    colour = "white" if value > 0.6 * divergence.max() else "black"
    axes.text(
        column,
        row,
        f"{value:.3f}",
        ha="center",
        va="center",
        color=colour,
        fontsize=9,
    )
axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
axes.set_yticks(range(len(names)), names)
axes.set_title("Jensen-Shannon divergence of letters, bits")
figure.colorbar(image)
plt.show()
