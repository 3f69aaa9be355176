"""
k1, k2 and k3
=============

In reinforcement learning the KL penalty is estimated from the tokens that a policy sampled. k1 = x, k2 = x²/2 and
k3 = e⁻ˣ − 1 + x of the log-ratio x have means near the divergence and very different spread: one sample of k1 says nearly
nothing when the policies are close.
"""

import kldiv
import matplotlib.pyplot as plt
import numpy as np
from kldiv.estimators import kl_estimate

random = np.random.default_rng(3)
reference = random.normal(0, 2, 1000)
distances = np.geomspace(0.01, 1, 13)
kinds = ("k1", "k2", "k3")
spread = {kind: [] for kind in kinds}
for distance in distances:
    policy = reference + random.normal(0, distance, reference.shape)
    truth = float(kldiv.kl_div_with_logits(reference, policy))
    log_p, log_q = (x - np.log(np.exp(x).sum()) for x in (policy, reference))
    tokens = random.choice(len(policy), 20_000, p=np.exp(log_p))
    for kind in kinds:
        samples = kl_estimate(
            log_p[tokens], log_q[tokens], kind=kind, reduction="none"
        )
        spread[kind].append(np.sqrt(np.mean((samples - truth) ** 2)) / truth)

# %%

figure, axes = plt.subplots()
for kind, values in spread.items():
    axes.loglog(distances, values, marker="o", markersize=4, label=kind)
axes.set_xlabel("size of the difference of the logits")
axes.set_ylabel("root mean square error of one sample / D")
axes.set_title("One sampled token says this little about the divergence")
axes.legend()
plt.show()
