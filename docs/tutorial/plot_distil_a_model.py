"""
From two distributions to a distilled model
===========================================

This page goes from the definition of a divergence to a small model that learns from a large one. It needs NumPy, PyTorch,
scikit-learn (for the data) and Matplotlib.

What a divergence is
--------------------

Two weather forecasts for tomorrow: sun, cloud, rain. P is right in the long run, Q is what an app says. D(P‖Q) is the
price of trusting Q: how many nats longer a message about the weather becomes if its code was made for Q.
"""

import kldiv
import matplotlib.pyplot as plt
import numpy as np

p = np.array([0.5, 0.3, 0.2])
q = np.array([0.7, 0.2, 0.1])
print(f"D(P‖Q) = {kldiv.kl_divergence(p, q):.4f} nats")
print(f"D(Q‖P) = {kldiv.kl_divergence(q, p):.4f} nats")
print(f"Jensen-Shannon = {kldiv.js_divergence(p, q):.4f} nats")

# %%
# The two directions differ. They are 0 only where P = Q, and infinite where one side rules out what the other has:

print(kldiv.kl_divergence(p, np.array([0.7, 0.3, 0.0])))

# %%
# Logits
# ------
#
# A model puts out *logits*, numbers whose softmax is the distribution. kldiv takes them as they are: taking the softmax
# first would lose digits just where training ends, when student and teacher are close.

teacher = np.array([2.0, 1.0, 0.5], dtype=np.float32)
student = teacher + np.array([0.0, 2e-4, 0.0], dtype=np.float32)


def softmax(logits):
    """Return probabilities."""
    weights = np.exp(logits)
    return weights / weights.sum()


log_p, log_q = np.log(softmax(teacher)), np.log(softmax(student))
print(f"the usual formula:  {(softmax(teacher) * (log_p - log_q)).sum():.4e}")
print(f"kl_div_with_logits: {kldiv.kl_div_with_logits(student, teacher):.4e}")
exact = kldiv.kl_div_with_logits(
    student.astype(np.float64), teacher.astype(np.float64)
)
print(f"in float64:         {exact:.4e}")

# %%
# The loss takes the student first, and so does every other; it is D(teacher‖student).
#
# A gradient, by hand
# -------------------
#
# ``value_and_grad`` works on every library, NumPy included. For KL the gradient in the student's logits is q − p: move
# towards the teacher. Thirty steps of gradient descent show it.

teacher, student = np.array([3.0, 1.0, 0.0]), np.zeros(3)
loss = kldiv.value_and_grad(kldiv.kl_div_with_logits)
values = []
for _ in range(30):
    value, gradient = loss(student, teacher)
    values.append(float(value))
    student -= 2.0 * gradient
plt.figure(figsize=(8, 3))
plt.semilogy(values)
plt.xlabel("step")
plt.ylabel("D(teacher‖student)")
plt.show()

# %%
# Data
# ----
#
# Handwritten digits of 8 × 8 pixels, 1797 of them. Labels are scarce for the student: 50 images, five of each digit. The
# teacher has seen the labels of 1297.

import torch
from sklearn.datasets import load_digits
from torch import nn

images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
images, labels = (images[order] / 16).float(), labels[order]
test_images, test_labels = images[:500], labels[:500]
images, labels = images[500:], labels[500:]
few = torch.cat([torch.nonzero(labels == digit)[:5, 0] for digit in range(10)])

figure, row = plt.subplots(1, 10, figsize=(8, 1.2))
for digit, axes in enumerate(row):
    axes.imshow(images[few[5 * digit]].reshape(8, 8), cmap="Greys")
    axes.axis("off")
plt.show()


# %%
# A teacher and two students
# --------------------------
#
# One function trains all three; what differs is the loss.


def model(units):
    """Make a net with one hidden layer, the same for the same number of units."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, units), nn.ReLU(), nn.Linear(units, 10))


def train(net, loss, steps=200):
    """Minimise a loss of the net, and return how many test images it then gets right."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    curve = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net).backward()
        optimizer.step()
        with torch.no_grad():
            curve.append(
                float((net(test_images).argmax(1) == test_labels).float().mean())
            )
    return curve


torch.set_num_threads(1)
teacher = model(256)
curves = {
    "teacher": train(
        teacher, lambda net: kldiv.cross_entropy_with_logits(net(images), labels)
    )
}
with torch.no_grad():
    taught = teacher(images)

curves["student, labels alone"] = train(
    model(16),
    lambda net: kldiv.cross_entropy_with_logits(net(images[few]), labels[few]),
)

# %%
# The distilled student sees the same 50 labels, and the teacher's logits on all images, softened by a temperature of 4 so
# that it learns what the teacher takes for nearly right. ``scale_by_temperature`` multiplies by T², which keeps the
# gradient's size.


def distil(net):
    """Add the loss of the labels and the divergence from the teacher."""
    soft = kldiv.distillation_loss(
        net(images), taught, beta=0.0, temperature=4.0, scale_by_temperature=True
    )
    return soft + kldiv.cross_entropy_with_logits(net(images[few]), labels[few])


curves["student, distilled"] = train(model(16), distil)

figure, axes = plt.subplots()
for name, curve in curves.items():
    axes.plot(curve, label=f"{name}: {curve[-1]:.1%}")
axes.set_ylim(0.5, 1)
axes.set_xlabel("step")
axes.set_ylabel("test images recognised")
axes.legend(loc="lower right")
plt.show()

# %%
# A student of 16 units comes close to a teacher of 256, though it knows 50 labels.
#
# When a loss looks odd
# ---------------------
#
# ``diagnose`` looks at one batch and names what is wrong with it, for instance probabilities where log-probabilities are
# expected:

with torch.no_grad():
    print(
        kldiv.diagnose(
            teacher(images[:8]).softmax(1), taught[:8].softmax(1)
        ).findings[0]
    )

# %%
# Where to go from here
# ---------------------
#
# * Other divergences, labels with ``ignore_index``, weights: :doc:`/distillation`.
# * Vocabularies that do not fit: :doc:`/linear` and :doc:`/scale`.
# * Why the digits are right: :doc:`/accuracy`.
