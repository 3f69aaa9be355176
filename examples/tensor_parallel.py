"""Distil a teacher whose vocabulary is spread over processes: each has a part of the classes.

    torchrun --nproc-per-node 2 examples/tensor_parallel.py

Each process holds a part of both output layers, as in tensor-parallel training.  The loss of all
classes takes one gather of a few numbers per row, its gradient none; the logits stay put.
"""

from __future__ import annotations

import os
import sys

try:
    import torch
    import torch.distributed as dist

    import kldiv
except ImportError as error:
    sys.exit(f'{error.name} is not installed; pip install "kldiv[torch]"')

ROWS, FEATURES, CLASSES, STEPS = 64, 32, 1001, 40


def layers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of some tokens and the weights of an output layer: of all classes."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, FEATURES, generator=random, dtype=torch.float64)
    return features, torch.randn(CLASSES, FEATURES, generator=random, dtype=torch.float64) / 4


def train(weight: torch.Tensor, teacher: torch.Tensor, group: dist.ProcessGroup | None) -> float:
    """Train a part of the student's output layer, or all of it; return the last loss."""
    features, _ = layers(0)
    weight = weight.clone().requires_grad_()
    optimiser = torch.optim.SGD([weight], lr=4.0)
    for step in range(STEPS):
        loss = kldiv.kl_div_with_logits(features @ weight.T, features @ teacher.T, group=group)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if group is not None and dist.get_rank() == 0 and step % 10 == 0:
            print(f"step {step:2}: {loss.item():.6f} nats")
    return loss.item()


def main() -> int:
    """Train spread over all processes, and once more in one; say whether they agree."""
    if "RANK" not in os.environ:
        sys.exit("start it by: torchrun --nproc-per-node 2 examples/tensor_parallel.py")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        rank, size = dist.get_rank(), dist.get_world_size()
        (_, student), (_, teacher) = layers(1), layers(2)
        # The last part is smaller where the classes cannot be shared out evenly.
        mine = [weight.chunk(size)[rank] for weight in (student, teacher)]
        spread = train(*mine, group=dist.group.WORLD)
        whole = train(student, teacher, group=None)
        agree = abs(spread - whole) <= 1e-12 * whole
        if rank == 0:
            print(f"{size} processes: {spread:.12f}, one: {whole:.12f}")
            print("They agree." if agree else "They DISAGREE.")
    finally:
        dist.destroy_process_group()
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
