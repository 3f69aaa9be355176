"""verl's KL penalty with kldiv's estimates: import this before verl's trainers (verl 0.9)."""

from verl.trainer.ppo import core_algos

from kldiv.estimators import kl_estimate


def kl_penalty(logprob, ref_logprob, kl_penalty):
    """Return each token's estimate, by verl's names: "kl", "mse", "low_var_kl", "k3+" and so on."""
    return kl_estimate(logprob, ref_logprob, kind=kl_penalty, log_ratio_clip=20.0, reduction="none")


core_algos.kl_penalty = kl_penalty
