"""
Speed and its roof
==================

No loss can be faster than reading its arguments once; that is the roof. These are times in multiples of it, on two cores
of a CPU, from the newest run of ``python -m bench.studies.cpu_kernels`` (``bench/results/cpu_kernels.json``). The machine
was shared with other work: ratios say something, milliseconds little.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

root = next(
    path for path in Path.cwd().parents if (path / "bench" / "results").is_dir()
)
results = json.loads(
    (root / "bench/results/cpu_kernels.json").read_text(encoding="utf-8")
)
tables = {
    "kl_div, 1024 × 32000": "kl_div, sum, 1024 x 32000, float32",
    "kl_div_with_logits, 512 × 32000": "kl_div_with_logits, mean, 512 x 32000, float32",
}
names = {
    "NumPy": "kldiv on NumPy",
    "torch": "kldiv on PyTorch",
    "compiled": "torch.compile",
    "eager": "PyTorch, eager",
}

# %%

figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for axes, (title, table) in zip(panels, tables.items(), strict=True):
    times = results["tables"][table]["ms"]
    ratios = [times[name] / times["floor"] for name in names]
    colours = [
        "#0b5cad" if "kldiv" in name else "#94a3b8" for name in names.values()
    ]
    bars = axes.barh(list(names.values()), ratios, color=colours)
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.axvline(1, color="#c2410c", linewidth=1.5)
    axes.set_xlim(0, 1.15 * max(ratios))
    axes.grid(visible=False)
    axes.set_title(title)
    axes.set_xlabel("time / reading both arrays once")
panels[0].invert_yaxis()
plt.show()
