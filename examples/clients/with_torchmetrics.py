"""The mean KL divergence of rows of logits as a metric of torchmetrics (1.9)."""

import torch
import torchmetrics

from kldiv import metrics


class KLDivergence(torchmetrics.Metric):
    """The mean KL divergence of rows of logits."""

    def __init__(self, **options):
        super().__init__()
        self.own = metrics.KLDivergence(**options)
        self.add_state("moments", metrics.moments(torch.zeros(0)), dist_reduce_fx=self.together)

    @staticmethod
    def together(states):  # a row for each process
        return metrics.merge_moments(*states)

    def update(self, student, teacher, **options):
        more = metrics.moments(self.own.rows(student, teacher), **options)
        self.moments = metrics.merge_moments(self.moments, more)

    def compute(self):
        return metrics.mean_of(self.moments)
