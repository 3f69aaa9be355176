"""Distillation with the plain Trainer of Hugging Face transformers."""

import torch

from kldiv import distillation_loss


def with_teacher(student, teacher):
    """Let the student's output carry the logits of a frozen teacher."""
    teacher.eval().requires_grad_(False)

    def add(module, args, inputs, output):
        with torch.no_grad():
            given = {name: inputs.get(name) for name in ("input_ids", "attention_mask")}
            output["teacher_logits"] = teacher(**given).logits

    student.register_forward_hook(add, with_kwargs=True)
    return student


def compute_loss(outputs, labels, num_items_in_batch=None):
    """Return the loss that `Trainer(compute_loss_func=compute_loss)` asks for.

    Logits at one place are those of the next token.  With `num_items_in_batch` losses of
    micro-batches add up to that of the whole batch, whatever their numbers of tokens.
    """
    return distillation_loss(
        outputs["logits"][:, :-1],
        outputs["teacher_logits"][:, :-1],
        labels[:, 1:],
        beta=0.5,
        temperature=2.0,
        hard_weight=0.2,
        num_items_in_batch=num_items_in_batch,
    )
