"""Train tiny random models with each client, by its own loss and by kldiv's, and compare.

    python examples/clients/curves.py            # the tables of docs/clients.md
    python examples/clients/curves.py trl liger  # of some clients

Nothing is downloaded: models come from configurations, tokens from a seed.  A run takes five steps
in float32 from a student far from its teacher, where both losses are accurate; the curves must be
the same.  Then each loss is given logits of which the truth is known in float64.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import tempfile
import warnings

import numpy as np

import kldiv

STEPS, VOCABULARY, WIDTH = 5, 64, 16

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "KERAS_BACKEND": "jax",
}


# ---- what the clients of PyTorch share -----------------------------------------------------------


def language_model(seed, scale=0.5):
    """Return a tiny causal model with weights of some size, so that its logits are far apart."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=scale,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def tokenizer():
    """Return a tokenizer of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    words.update({f"w{number}": number for number in range(4, VOCABULARY)})
    own = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )


def sequences(many=32):
    """Return token sequences of unlike lengths."""
    random = np.random.default_rng(0)
    return [random.integers(4, VOCABULARY, random.integers(8, 20)).tolist() for _ in range(many)]


def arguments(folder, **more):
    """Return the arguments that all trainers of Hugging Face share."""
    return {
        "output_dir": folder,
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        **more,
    }


def trained(trainer):
    """Return the exact losses of a trainer's steps: those that it logs are rounded."""
    losses, step = [], trainer.training_step

    def kept(*args, **kwargs):
        loss = step(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.training_step = kept
    trainer.train()
    micro = np.array(losses).reshape(-1, trainer.args.gradient_accumulation_steps)
    return micro.sum(1)


# ---- each client: its curve ----------------------------------------------------------------------


def gkd(own):
    """TRL, GKDTrainer."""
    import with_trl
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = [
        {"prompt": "", "input_ids": ids, "completion_mask": [0] * 3 + [1] * (len(ids) - 3)}
        for ids in sequences()
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = (GKDTrainer if own else with_trl.GKDTrainer)(
            model=language_model(0),
            teacher_model=language_model(1),
            args=GKDConfig(**arguments(folder, lmbda=0.0, gradient_checkpointing=False)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        return trained(trainer)


def distillation(own):
    """TRL, DistillationTrainer."""
    import with_trl
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    rows = [{"prompt": " ".join(f"w{each}" for each in ids[:4])} for ids in sequences()]
    with tempfile.TemporaryDirectory() as folder:
        given = {"max_completion_length": 8, "beta": 0.5, "gradient_checkpointing": False}
        trainer = (DistillationTrainer if own else with_trl.DistillationTrainer)(
            model=language_model(0),
            teacher_model=language_model(1),
            args=DistillationConfig(**arguments(folder, **given)),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        return trained(trainer)


def textbook(student, teacher):
    """Return D(P‖Q) of each row as it is written by hand in PyTorch."""
    from torch.nn.functional import kl_div, log_softmax

    logs = log_softmax(student, -1), log_softmax(teacher, -1)
    return kl_div(*logs, reduction="none", log_target=True).sum(-1)


def trainer(own):
    """Hugging Face, Trainer."""
    import torch
    import with_trainer
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    def by_hand(outputs, labels, num_items_in_batch):
        names = "logits", "teacher_logits"
        student, teacher = (outputs[name][:, :-1][labels[:, 1:] != -100] for name in names)
        hard = torch.nn.functional.cross_entropy(
            student, labels[:, 1:][labels[:, 1:] != -100], reduction="sum"
        )
        s, t = (torch.log_softmax(each / 2, -1) for each in (student, teacher))
        mixture = torch.logaddexp(s, t) - math.log(2)
        soft = 0.5 * (t.exp() * (t - mixture) + s.exp() * (s - mixture)).sum()
        return (0.2 * hard + 0.8 * soft) / num_items_in_batch

    rows = [{"input_ids": ids, "labels": [-100] * 3 + ids[3:]} for ids in sequences()]
    with tempfile.TemporaryDirectory() as folder:
        return trained(
            Trainer(
                model=with_trainer.with_teacher(language_model(0), language_model(1)),
                args=TrainingArguments(**arguments(folder)),
                train_dataset=rows,
                data_collator=DataCollatorForSeq2Seq(tokenizer()),
                compute_loss_func=by_hand if own else with_trainer.compute_loss,
            )
        )


def liger(own):
    """Liger, LigerFusedLinearJSDLoss."""
    import torch
    import with_liger
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    module = LigerFusedLinearJSDLoss if own else with_liger.LigerFusedLinearJSDLoss
    loss = module(compiled=False, chunk_size=8)
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(32, 8), torch.randn(VOCABULARY, 8), torch.randn(VOCABULARY)
    teacher = torch.randn(32, WIDTH), torch.randn(VOCABULARY, WIDTH)
    labels = torch.randint(VOCABULARY, (32,))
    labels[::5] = -100
    layers = [each.requires_grad_() for each in (hidden, weight, bias)]
    optimizer, losses = torch.optim.AdamW(layers, 0.05), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(hidden, weight, *teacher, labels, bias)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return np.array(losses)


def pairs(rows=64, features=8):
    """Return inputs and a layer of a teacher."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(rows, features)).astype(np.float32)
    return inputs, random.normal(size=(features, VOCABULARY)).astype(np.float32)


def lightning(own):
    """Lightning, LightningModule."""
    import torch
    import with_lightning
    from lightning import Trainer, seed_everything
    from torch.utils.data import DataLoader, TensorDataset

    seed_everything(0, verbose=False)
    inputs, weight = map(torch.from_numpy, pairs())
    teacher = torch.nn.Linear(*weight.shape, bias=False)
    teacher.weight.data = weight.T
    module = with_lightning.Distillation(
        torch.nn.Linear(*weight.shape), teacher, rate=0.05, beta=0.0
    )
    losses, take = [], module.loss
    if own:
        take = lambda student, teacher, labels: textbook(student, teacher).mean()  # noqa: E731

    def kept(*given):
        value = take(*given)
        losses.append(value.item())
        return value

    del module.loss
    module.loss = kept
    data = TensorDataset(inputs, torch.zeros(len(inputs), dtype=torch.long))
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        ).fit(module, DataLoader(data, batch_size=len(inputs) // STEPS + 1))
    return np.array(losses)


def of_optax(student, teacher):
    """Return optax's divergence of logits."""
    import jax
    import optax

    logs = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    return optax.losses.kl_divergence_with_log_targets(*logs).mean()


def nnx(own):
    """Flax nnx, with a chain of optax."""
    import with_flax
    from flax import nnx

    inputs, weight = pairs()
    student = nnx.Linear(*weight.shape, rngs=nnx.Rngs(0))
    state = nnx.Optimizer(student, with_flax.optimizer, wrt=nnx.Param)
    other = {"loss": of_optax} if own else {}
    return np.array(
        [
            float(with_flax.nnx_step(student, state, inputs, inputs @ weight, **other))
            for _ in range(STEPS)
        ]
    )


def linen(own):
    """Flax linen, with a chain of optax."""
    import jax
    import with_flax
    from flax import linen

    inputs, weight = pairs()
    student = linen.Dense(VOCABULARY)
    params = student.init(jax.random.key(0), inputs)
    state, losses = with_flax.optimizer.init(params), []
    other = {"loss": of_optax} if own else {}
    for _ in range(STEPS):
        params, state, loss = with_flax.linen_step(
            student, params, state, inputs, inputs @ weight, **other
        )
        losses.append(float(loss))
    return np.array(losses)


def of_keras(target, logits):
    """Return Keras' divergence of logits."""
    import keras

    return keras.losses.kl_divergence(keras.ops.softmax(target), keras.ops.softmax(logits))


def keras(own):
    """Keras, Model.fit."""
    import keras
    import with_keras

    keras.utils.set_random_seed(0)
    inputs, weight = pairs()
    model = keras.Sequential([keras.Input(inputs.shape[1:]), keras.layers.Dense(VOCABULARY)])
    loss = of_keras if own else with_keras.KLDivergence()
    model.compile(keras.optimizers.Adam(0.05), loss=loss)
    fitted = model.fit(
        inputs, inputs @ weight, batch_size=len(inputs), epochs=STEPS, shuffle=False, verbose=0
    )
    return np.array(fitted.history["loss"])


CURVES = {
    "TRL, GKDTrainer": gkd,
    "TRL, DistillationTrainer": distillation,
    "transformers, Trainer": trainer,
    "Liger": liger,
    "Lightning": lightning,
    "Flax nnx, optax": nnx,
    "Flax linen, optax": linen,
    "Keras": keras,
}


def difference(curve):
    """Return the losses with the client's own loss, and how far those with kldiv's are off."""
    own, ours = curve(own=True), curve(own=False)
    return own, np.abs(ours / own - 1).max()


# ---- each client: its gradient -------------------------------------------------------------------
# Each takes logits as PyTorch's tensors, float32 or bfloat16, and returns the gradient in the
# student's of the mean over rows.


def torch_gradient(loss, student, teacher):
    """Return a gradient of PyTorch's."""
    student = student.clone().requires_grad_()
    loss(student, teacher).backward()
    return student.grad.double().numpy()


def jax_gradient(loss, *logits):
    """Return a gradient of JAX's."""
    import jax

    arrays = [
        jax.numpy.asarray(each.float().numpy(), str(each.dtype).removeprefix("torch."))
        for each in logits
    ]
    return np.asarray(jax.grad(loss)(*arrays).astype("float32"), np.float64)


def gkd_gradient(own, student, teacher):
    """TRL, GKDTrainer: Jensen-Shannon."""
    import with_trl
    from trl.experimental.gkd import GKDTrainer

    return torch_gradient(
        (GKDTrainer if own else with_trl.GKDTrainer).generalized_jsd_loss, student, teacher
    )


def distillation_gradient(own, student, teacher):
    """TRL, DistillationTrainer: the logits are the hidden states, the layer is the identity."""
    import torch
    import with_trl
    from trl.trainer import distillation_trainer

    identity = torch.eye(VOCABULARY, dtype=student.dtype)
    module = distillation_trainer if own else with_trl
    names = "_chunked_divergence_loss", "chunked_divergence_loss"
    loss = getattr(module, names[not own])

    def first(student, teacher):
        rows = torch.ones(student.shape[:-1])[None]
        return loss(student[None], teacher[None], identity, identity, rows, beta=0.5)[0]

    return torch_gradient(first, student, teacher)


def liger_gradient(own, student, teacher):
    """Liger: likewise."""
    import torch
    import with_liger
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    module = LigerFusedLinearJSDLoss if own else with_liger.LigerFusedLinearJSDLoss
    loss = module(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False)
    identity = torch.eye(VOCABULARY, dtype=student.dtype)
    labels = torch.zeros(len(student), dtype=torch.long)
    return torch_gradient(lambda s, t: loss(s, identity, t, identity, labels), student, teacher)


def torch_own_gradient(own, student, teacher):
    """Return that of the loss as it is written by hand for Trainer and Lightning: D(P‖Q)."""
    loss = (lambda s, t: textbook(s, t).mean()) if own else kldiv.kl_div_with_logits
    return torch_gradient(loss, student, teacher)


def optax_gradient(own, student, teacher):
    """optax: D(P‖Q)."""
    return jax_gradient(of_optax if own else kldiv.kl_div_with_logits, student, teacher)


def keras_gradient(own, student, teacher):
    """Keras: D(P‖Q), by whatever library it is on."""
    import keras
    import with_keras

    loss = of_keras if own else with_keras.KLDivergence()
    gradient = {"jax": jax_gradient, "torch": torch_gradient}[keras.backend.backend()]
    return gradient(lambda s, t: loss(t, s).mean(), student, teacher)


def verl_gradient(own, student, teacher):
    """verl: low_var_kl of sampled tokens' log-probabilities."""
    import with_verl
    from verl.trainer.ppo import core_algos

    loss = core_algos.kl_penalty_forward if own else with_verl.kl_penalty
    return torch_gradient(lambda s, t: loss(s, t, "low_var_kl").sum(-1).mean(), student, teacher)


GRADIENTS = {
    "TRL, GKDTrainer, β = ½": (gkd_gradient, 0.5),
    "TRL, DistillationTrainer, β = ½": (distillation_gradient, 0.5),
    "Liger, β = ½": (liger_gradient, 0.5),
    "by hand in PyTorch, D(P‖Q)": (torch_own_gradient, 0.0),
    "optax, D(P‖Q)": (optax_gradient, 0.0),
    "Keras, D(P‖Q)": (keras_gradient, 0.0),
    "verl, low_var_kl": (verl_gradient, None),
}
CASES = {
    "float32, far apart": ("float32", None),
    "float32, 1e-4 apart": ("float32", 1e-4),
    "bfloat16, far apart": ("bfloat16", None),
    "bfloat16, 0.03 apart": ("bfloat16", 0.03),
}


def logits(dtype, apart):
    """Return logits of student and teacher that are so far apart, or unlike."""
    import torch

    random = np.random.default_rng(0)
    student, other = random.normal(size=(2, 32, VOCABULARY))
    teacher = other if apart is None else student + apart * other
    return [torch.from_numpy(each).to(getattr(torch, dtype)) for each in (student, teacher)]


def truth(beta, student, teacher):
    """Return the gradient in float64, by the definition."""
    student, teacher = student.double(), teacher.double()
    if beta is None:
        return ((1 - (teacher - student).exp()) / len(student)).numpy()

    def loss(student, teacher):
        if beta == 0:
            return textbook(student, teacher).mean()
        q, p = student.softmax(-1), teacher.softmax(-1)
        m = (p + q) / 2
        return (p * (p / m).log() + q * (q / m).log()).sum(-1).mean() / 2

    return torch_gradient(loss, student, teacher)


def errors(gradient, beta):
    """Return for each case how far a client's own gradient, and kldiv's, is off the truth."""
    found = []
    for dtype, apart in CASES.values():
        given = logits(dtype, apart)
        right = truth(beta, *given)
        off = [np.linalg.norm(gradient(own, *given) - right) for own in (True, False)]
        found.append([each / np.linalg.norm(right) for each in off])
    return found


# ---- tables --------------------------------------------------------------------------------------


def table(head, lines):
    """Return a table in Markdown."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *lines))


def main(words):
    """Print both tables, of clients that one of some words is in, or of all."""
    os.environ.update(ENVIRONMENT)
    warnings.simplefilter("ignore")
    chosen = [
        {
            name: each
            for name, each in those.items()
            if any(w in name.lower() for w in words or [""])
        }
        for those in (CURVES, GRADIENTS)
    ]
    curves, gradients = [], []
    with contextlib.redirect_stdout(io.StringIO()):  # of what trainers print
        for name, curve in chosen[0].items():
            own, off = difference(curve)
            curves.append([name, f"{own[0]:.4f}", f"{own[-1]:.4f}", f"{off:.1e}"])
        for name, (gradient, beta) in chosen[1].items():
            found = errors(gradient, beta)
            gradients.append([name, *(f"{own:.1e}, **{ours:.1e}**" for own, ours in found)])
    head = ["client", "loss of step 1", f"of step {STEPS}", "kldiv's curve is off by"]
    print(table(head, curves), table(["loss", *CASES], gradients), sep="\n\n")


if __name__ == "__main__":
    main([word.lower() for word in sys.argv[1:]])
