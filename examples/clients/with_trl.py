"""TRL's distillation trainers with kldiv's losses (trl 1.16)."""

from unittest.mock import patch

import torch
from torch.distributed.tensor import DTensor, Partial
from trl.experimental import gkd
from trl.trainer import distillation_trainer

import kldiv


class GKDTrainer(gkd.GKDTrainer):
    """TRL's trainer of generalised knowledge distillation; arguments as there."""

    generalized_jsd_loss = staticmethod(kldiv.distillation_loss)


def chunked_divergence_loss(
    student_hidden_states,
    teacher_hidden_states,
    student_lm_head_weight,
    teacher_lm_head_weight,
    completion_mask,
    beta,
    num_items_in_batch=None,
    student_lm_head_bias=None,
    teacher_lm_head_bias=None,
    student_logit_scale=1.0,
    teacher_logit_scale=1.0,
    student_final_logit_softcapping=None,
    teacher_final_logit_softcapping=None,
    temperature=1.0,
):
    """Return the loss of DistillationTrainer, the sum of entropies, and the tokens."""
    student = kldiv.Head(
        student_hidden_states,
        whole(student_lm_head_weight),
        whole(student_lm_head_bias),
        student_final_logit_softcapping,
        student_logit_scale,
    )
    teacher = kldiv.Head(
        teacher_hidden_states,
        whole(teacher_lm_head_weight),
        whole(teacher_lm_head_bias),
        teacher_final_logit_softcapping,
        teacher_logit_scale,
    )
    keep = completion_mask.bool()
    tokens = keep.sum()
    divisor = tokens.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    loss = kldiv.linear_distillation_loss(
        student,
        teacher,
        beta=beta,
        temperature=temperature,
        where=keep,
        num_items_in_batch=divisor,
    )
    with torch.no_grad():  # logged by the trainer
        labels = torch.zeros_like(completion_mask, dtype=torch.long)
        _, entropy = kldiv.linear_log_prob_and_entropy(
            student, labels, temperature=temperature, where=keep
        )
    return loss, entropy.sum(), tokens


def whole(parameter):
    """Gather a weight that FSDP2 has sharded; its gradient is the ranks' mean, as FSDP's."""
    if not isinstance(parameter, DTensor):
        return parameter
    return parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)


class DistillationTrainer(distillation_trainer.DistillationTrainer):
    """TRL's stable trainer; arguments as there."""

    def _compute_loss(self, *args, **kwargs):
        # The loss is a function of TRL's module, to which there is no other way.
        with patch.object(
            distillation_trainer, "_chunked_divergence_loss", chunked_divergence_loss
        ):
            return super()._compute_loss(*args, **kwargs)
