"""A LightningModule that distils a teacher into a student."""

import lightning
import torch

from kldiv.nn import DistillationLoss


class Distillation(lightning.LightningModule):
    """A student beside a frozen teacher; batches are inputs and labels."""

    def __init__(self, student, teacher, rate=1e-3, **options):
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)
        self.rate, self.loss = rate, DistillationLoss(**options)

    def training_step(self, batch, index):
        """Return the loss of a batch, and log it."""
        inputs, labels = batch
        with torch.no_grad():
            teacher = self.teacher.eval()(inputs)
        loss = self.loss(self.student(inputs), teacher, labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        """Train the student alone."""
        return torch.optim.AdamW(self.student.parameters(), self.rate)
