"""Liger's chunked distillation loss with kldiv's divergence in each chunk (liger-kernel 0.8)."""

from liger_kernel.chunked_loss import jsd_loss

import kldiv


class ChunkedDistillation(jsd_loss.LigerFusedLinearJSDFunction):
    """Liger's chunks, of which each loss, and so each gradient, is kldiv's."""

    @staticmethod
    def distillation_loss_fn(student_logits, teacher_logits, beta=0.5, target=None, **options):
        """Return the sum over the chunk's tokens; Liger divides by how many there are in all."""
        return kldiv.distillation_loss(
            student_logits, teacher_logits, target, beta=beta, reduction="sum", **options
        )


class LigerFusedLinearJSDLoss(jsd_loss.LigerFusedLinearJSDLoss):
    """Liger's module; arguments as there."""

    def forward(
        self,
        student_input,
        student_weight,
        teacher_input,
        teacher_weight,
        true_labels,
        student_bias=None,
        teacher_bias=None,
    ):
        """Return the loss, or with `return_soft_hard_loss` also its two parts."""
        return ChunkedDistillation.apply(
            student_input,
            student_weight,
            teacher_input,
            teacher_weight,
            true_labels,
            student_bias,
            teacher_bias,
            self.weight_hard_loss,
            self.weight_soft_loss,
            self.beta,
            self.ignore_index,
            self.temperature,
            self.compiled,
            self.chunk_size,
            self.return_soft_hard_loss,
        )
