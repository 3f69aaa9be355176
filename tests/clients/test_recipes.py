"""What the examples for clients promise besides the curves."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from clients.real import curves, needs, run_keras

import kldiv


@needs("TRL")
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_trl_s_loss_has_the_same_arguments(beta, torch):
    import with_trl
    from trl.experimental.gkd import GKDTrainer

    random = np.random.default_rng(1)
    student, teacher = torch.from_numpy(2 * random.normal(size=(2, 3, 5, 11)))
    labels = torch.from_numpy(random.integers(11, size=(3, 5)))
    labels[0] = labels[1, :2] = -100
    own, ours = (each.generalized_jsd_loss for each in (GKDTrainer, with_trl.GKDTrainer))
    for options in (
        {"labels": labels},
        {"labels": labels, "num_items_in_batch": torch.tensor(23)},
        {"labels": labels, "reduction": "sum", "temperature": 2.0},
        {"labels": torch.full_like(labels, -100)},
        {},
    ):
        found = [loss(student, teacher, beta=beta, **options) for loss in (own, ours)]
        torch.testing.assert_close(*found, rtol=1e-12, atol=1e-15)


@needs("TRL")
def test_trl_s_chunked_loss_has_the_same_arguments(torch):
    import with_trl
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    random = np.random.default_rng(2)
    hidden = [torch.from_numpy(random.normal(size=(2, 6, n)).astype("f")) for n in (8, 12)]
    layers = [torch.from_numpy(random.normal(size=(31, n)).astype("f")) for n in (8, 12)]
    mask = torch.tensor([[1, 1, 1, 0, 1, 0], [0, 1, 1, 1, 1, 1]])
    options = {
        "student_lm_head_bias": torch.from_numpy(random.normal(size=31).astype("f")),
        "teacher_final_logit_softcapping": 5.0,
        "student_logit_scale": 0.5,
        "temperature": 1.5,
    }
    for beta, number, kept in ((0.3, None, mask), (0.0, 7, mask), (1.0, None, 0 * mask)):
        losses, gradients = [], []
        for loss in (_chunked_divergence_loss, with_trl.chunked_divergence_loss):
            given = [each.clone().requires_grad_() for each in (hidden[0], layers[0])]
            found = loss(given[0], hidden[1], given[1], layers[1], kept, beta, number, **options)
            losses.append(torch.stack([each.detach().double() for each in found]))
            gradients.append(torch.autograd.grad(found[0], given))
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@needs("TRL")
def test_trl_s_module_is_left_as_it_was():
    from trl.trainer import distillation_trainer

    before = distillation_trainer._chunked_divergence_loss
    curves.distillation(own=False)
    assert distillation_trainer._chunked_divergence_loss is before


@needs("transformers")
def test_micro_batches_of_the_trainer_add_up(torch, tmp_path):
    import with_trainer
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    rows = [{"input_ids": ids, "labels": [-100] * 3 + ids[3:]} for ids in curves.sequences(4)]
    assert len({len(row["labels"]) for row in rows}) > 1
    found = []
    for size in (4, 2, 1):
        student = curves.language_model(0)
        options = {
            "max_steps": 1,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": 4 // size,
            "optim": "sgd",
            "learning_rate": 1.0,
            "max_grad_norm": 0.0,
        }
        trainer = Trainer(
            model=with_trainer.with_teacher(student, curves.language_model(1)),
            args=TrainingArguments(**{**curves.arguments(tmp_path), **options}),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(curves.tokenizer()),
            compute_loss_func=with_trainer.compute_loss,
        )
        loss = curves.trained(trainer)[0]
        found.append((loss, student.lm_head.weight.detach()))
    before = curves.language_model(0).lm_head.weight.detach()
    assert not torch.allclose(found[0][1], before, rtol=1e-3)
    for loss, weight in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        torch.testing.assert_close(weight, found[0][1], rtol=1e-5, atol=1e-6)


@needs("Liger")
@pytest.mark.parametrize("compiled", [False, True])
def test_liger_s_module_has_the_same_arguments(compiled, torch, monkeypatch):
    import with_liger
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    # Traced, gradient and all, but left to PyTorch: to compile C++ takes minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))

    torch.manual_seed(0)
    hidden, weight = torch.randn(32, 8), torch.randn(31, 8)
    teacher = torch.randn(32, 12), torch.randn(31, 12)
    labels = torch.randint(31, (32,))
    labels[::3] = -1
    options = {
        "ignore_index": -1,
        "beta": 0.2,
        "temperature": 2.0,
        "weight_hard_loss": 0.3,
        "weight_soft_loss": 0.7,
        "chunk_size": 16,
        "return_soft_hard_loss": True,
    }
    found = []
    for module, fast in (
        (LigerFusedLinearJSDLoss, False),
        (with_liger.LigerFusedLinearJSDLoss, compiled),
    ):
        given = [each.clone().requires_grad_() for each in (hidden, weight)]
        losses = module(compiled=fast, **options)(*given, *teacher, labels)
        found.append([*losses, *torch.autograd.grad(losses[0], given)])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@needs("torchmetrics")
def test_torchmetrics(torch):
    from with_torchmetrics import KLDivergence

    metric, other = KLDivergence(), KLDivergence()
    student, teacher = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 30, 7)))
    for part in (slice(0, 4), slice(4, 19)):
        metric.update(student[part], teacher[part])
    other.update(student[19:], teacher[19:], where=torch.ones(11, dtype=torch.bool))
    metric.moments = metric.together(torch.stack([metric.moments, other.moments]))
    expected = kldiv.kl_div_with_logits(student, teacher)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-14, atol=0)
    forward = other(student, teacher)  # a batch by itself, beside the sum
    torch.testing.assert_close(forward, expected, rtol=1e-14, atol=0)
    metric.reset()
    assert metric.moments[0] == 0


KERAS = """
import sys

import keras
import numpy as np
import with_keras
from with_keras_metric import KLDivergence

import kldiv
from kldiv.errors import LibraryError

policy, path = sys.argv[1:]
student, teacher = np.random.default_rng(0).normal(size=(2, 12, 9)).astype("float32")
weight = np.linspace(0.0, 1.0, 12, dtype="float32")
loss = with_keras.KLDivergence(temperature=2.0)
rows = kldiv.kl_div_with_logits(
    student.astype(float), teacher.astype(float), temperature=2.0, reduction="none"
)
np.testing.assert_allclose(float(loss(teacher, student)), rows.mean(), rtol=1e-6)
weighed = float(loss(teacher, student, sample_weight=weight))
np.testing.assert_allclose(weighed, (weight * rows).mean(), rtol=1e-6)

inputs = keras.Input((9,)), keras.Input((9,))
outputs = with_keras.Divergence()(*inputs)  # Keras traces the layer for the shape of its output
assert outputs.shape == (None,)
model = keras.Model(inputs, outputs)
expected = kldiv.kl_div_with_logits(student, teacher, reduction="none")
np.testing.assert_allclose(
    model.predict([student, teacher], batch_size=5, verbose=0), expected, rtol=1e-5, atol=1e-7
)
model.save(path)
again = keras.saving.load_model(path)
np.testing.assert_allclose(
    again.predict([student, teacher], verbose=0), expected, rtol=1e-5, atol=1e-7
)
try:
    kldiv.kl_div_with_logits(*inputs)
except LibraryError as error:
    assert "in a layer" in str(error), error
else:
    raise AssertionError("symbols are no arrays")
metric, weighted = KLDivergence(), KLDivergence("weighted")
model = keras.Model(inputs[0], keras.layers.Identity()(inputs[0]))
model.compile(loss="mse", metrics=[metric], weighted_metrics=[weighted])
options = {"batch_size": 5, "verbose": 0, "return_dict": True}
found = model.evaluate(student, teacher, sample_weight=weight, **options)
again = model.evaluate(student[:7], teacher[:7], **options)
rows = kldiv.kl_div_with_logits(
    student.astype(float), teacher.astype(float), reduction="none"
)
np.testing.assert_allclose(
    [found["kl_divergence"], found["weighted"], again["weighted"]],
    [rows.mean(), (weight * rows).sum() / weight.sum(), rows[:7].mean()],
    rtol=1e-6,
)

if keras.backend.backend() != "numpy":  # which does not train
    keras.mixed_precision.set_global_policy(policy)
    layer = keras.layers.Dense(9, kernel_initializer="zeros")
    student_model = keras.Sequential([keras.Input((9,)), layer])
    student_model.compile("adam", loss=loss)
    fitted = student_model.fit(student, teacher, epochs=2, verbose=0).history["loss"]
    uniform = kldiv.kl_div_with_logits(0 * teacher, teacher, temperature=2.0)
    np.testing.assert_allclose(fitted[0], uniform, rtol=1e-2 if "16" in policy else 1e-6)
    assert fitted[1] < fitted[0]
    student_model.save(path)
    assert keras.saving.load_model(path).loss.temperature == 2.0
"""


@needs("Keras")
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_keras_loss_layer_and_metric(backend, tmp_path):
    policy = {"torch": "mixed_bfloat16"}.get(backend, "float32")
    run_keras(KERAS, backend, tmp_path, policy, tmp_path / "model.keras")


@needs("sklearn")
def test_scikit_learn_s_scorers():
    import with_sklearn
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    random = np.random.default_rng(0)
    points = random.normal(size=(60, 3))
    labels = (points @ random.normal(size=(3, 3))).argmax(1)
    model = LogisticRegression()
    scores = cross_val_score(model, points, labels, scoring=with_sklearn.classifier_scorer, cv=3)
    same = cross_val_score(model, points, labels, scoring="neg_log_loss", cv=3)
    np.testing.assert_allclose(scores, same, rtol=1e-12)  # of sure labels the two are one
    soft = random.dirichlet(np.ones(3), size=60)
    search = GridSearchCV(
        RandomForestRegressor(n_estimators=5, random_state=0),
        {"min_samples_leaf": [1, 20]},
        scoring=with_sklearn.soft_label_scorer,
        cv=3,
    ).fit(points, soft)
    expected = -float(kldiv.kl_divergence(soft, search.predict(points)).mean())
    assert search.score(points, soft) == pytest.approx(expected, rel=1e-12)
    assert search.best_params_ == {"min_samples_leaf": 20}


@needs("verl")
@pytest.mark.parametrize("kind", ["kl", "k1+", "mse", "k2", "low_var_kl", "k3", "low_var_kl+"])
def test_verl_s_names(kind, torch):
    import with_verl
    from verl.trainer.ppo import core_algos

    assert core_algos.kl_penalty is with_verl.kl_penalty
    policy, reference = -torch.rand(2, 3, 5, dtype=torch.float64)
    mine, own = policy.clone().requires_grad_(), policy.clone().requires_grad_()
    found = with_verl.kl_penalty(mine, reference, kind)
    base = core_algos.kl_penalty_forward(own, reference, kind.removesuffix("+"))
    torch.testing.assert_close(found, base, rtol=1e-12, atol=1e-14)
    if kind.endswith("+"):
        base = (own - reference).square() / 2
    gradients = [
        torch.autograd.grad(each.sum(), at)[0] for each, at in ((found, mine), (base, own))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
