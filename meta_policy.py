"""Phases 1 to 3: their losses, each a pure function of tensors, and the loops that call them.

Phase 1 fine-tunes the teacher, phase 2 distils the student, phase 3 trains the meta-teacher's head on quiz. After phase 1
the teacher's encoder is frozen; the later phases ask a FrozenEncoder for its outputs by example.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from data_utils import derive_seed, seeded_generator, shuffled_batches
from metrics import Best, score


class TrainingError(Exception):
    """Training cannot go on (a loss or gradient is not finite). The message says where and what to try."""


# --- losses ------------------------------------------------------------------------------------------------------------

def true_class_probability(logits, labels):
    """p(y|x). logits: (batch, classes), labels: (batch) -> (batch)."""
    return logits.softmax(dim=-1).gather(1, labels[:, None]).squeeze(1)


def soft_loss(teacher_logits, student_logits, temperature):
    """soft = t^2 * MSE(softmax(T'(h_T)/t), softmax(S/t)), mean over all elements (METHOD.md phase 2). Both: (batch, classes)."""
    return temperature ** 2 * F.mse_loss((student_logits / temperature).softmax(-1), (teacher_logits / temperature).softmax(-1))


def pkd_loss(student_states, teacher_states):
    """pkd = mean squared difference of the L2-normalised [CLS] states of layers 1..n-1 (METHOD.md phase 2).
    Both: (n - 1, batch, hidden). A student of one layer has no such layer: 0."""
    if student_states.shape[0] == 0:
        return student_states.new_zeros(())
    return F.mse_loss(F.normalize(student_states, dim=-1), F.normalize(teacher_states, dim=-1))


def distillation_loss(soft, ce, pkd, alpha, beta):
    """L = alpha * soft + (1 - alpha) * CE + beta * pkd (METHOD.md phase 2). Scalars."""
    return alpha * soft + (1 - alpha) * ce + beta * pkd


def collaborative_loss(logits_teacher, logits_student, labels):
    """L = 0.5 * CE(T'(h_T), y) + 0.5 * CE(T'(h_S), y) (METHOD.md phase 3). Logits of T' on both encoders' pooled outputs:
    (batch, classes)."""
    return 0.5 * F.cross_entropy(logits_teacher, labels) + 0.5 * F.cross_entropy(logits_student, labels)


def competitive_loss(logits_teacher, logits_student, labels):
    """L = CE(T'(h_T), y) - mean p_T'(y|h_T) + mean p_T'(y|h_S) (METHOD.md phase 3). Arguments as in collaborative_loss."""
    return (F.cross_entropy(logits_teacher, labels) - true_class_probability(logits_teacher, labels).mean()
            + true_class_probability(logits_student, labels).mean())


META_LOSSES = {"col": collaborative_loss, "com": competitive_loss}


# --- what the loops share ------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Training:
    """Settings of a phase. A phase reads no others, and all of them are in its identity."""
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    select_on: str
    eval_batch_size: int
    device: str
    precision: str


@dataclass(frozen=True)
class Distillation(Training):
    """Settings of phase 2."""
    nlayers: int
    temperature: float
    alpha: float
    beta: float


@dataclass(frozen=True)
class MetaTraining(Training):
    """Settings of phase 3; loss: col or com."""
    loss: str


@dataclass(frozen=True)
class Selection:
    """Scores of a model on the splits that are looked at, and which of them selects.

    predict(split): logits (examples, classes) of the model as it is now. splits: name -> Split, those scored.
    """
    predict: Callable
    splits: dict
    select_on: str

    def scores(self):
        """{split name: what metrics.score gives}."""
        return {name: score(split.task, self.predict(split).argmax(-1), split.labels) for name, split in self.splits.items()}

    def main(self, scores):
        """The figure that selects: the task's main metric on the selecting split."""
        return scores[self.select_on][self.splits[self.select_on].task.metrics[0]]


def make_optimizer(module, learning_rate, weight_decay):
    """AdamW with decay on matrices only, not on biases and LayerNorm, which are the vectors (METHOD.md row 9)."""
    matrices = [p for p in module.parameters() if p.ndim > 1]
    vectors = [p for p in module.parameters() if p.ndim <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
                             lr=learning_rate, fused=True)


def update(loss, module, optimizer, max_grad_norm):
    """One step: backward, clip the L2 norm of all gradients, step, forget the gradients. Returns the norm before clipping."""
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm.detach()


def mean_figures(steps, where, learning_rate):
    """Means over steps of their figures, fetched from the device once. steps: a list of {name: scalar tensor}.
    TrainingError at the first figure that is not finite."""
    table = torch.stack([torch.stack([value.detach().float() for value in step.values()]) for step in steps]).cpu()
    bad = (~table.isfinite()).nonzero()
    if len(bad):
        step, column = bad[0].tolist()
        raise TrainingError(f"{where}, step {step + 1}: {list(steps[0])[column]} is {table[step, column].item()} at learning rate "
                            f"{learning_rate:g}; finished phases are kept: lower the rate or --max_grad_norm and use another --output_dir")
    return dict(zip(steps[0], table.double().mean(0).tolist()))


def run_epochs(phase, module, split, step, settings, selection, log):
    """Epochs of step(indices) over shuffled batches of split; the module ends with its best epoch's weights.

    step trains on one batch and returns its figures as {name: scalar tensor}, `loss` among them. Returns the Best.
    """
    order = seeded_generator(settings.seed, phase, "order")
    torch.manual_seed(derive_seed(settings.seed, phase, "dropout"))
    best = Best()
    with log.progress(phase, settings.epochs * -(-len(split) // settings.batch_size)) as bar:
        for epoch in range(1, settings.epochs + 1):
            start, steps = time.perf_counter(), []
            module.train()
            for indices in shuffled_batches(len(split), settings.batch_size, order):
                steps.append(step(indices))
                bar.update()
            figures = mean_figures(steps, f"phase {phase}, epoch {epoch}", settings.learning_rate)
            scores = selection.scores()
            improved = best.offer(selection.main(scores), epoch, scores, module)
            bar.set_postfix(loss=f"{figures['loss']:.4f}", score=f"{selection.main(scores):.4f}", best=f"{best.score:.4f}")
            log.event(phase=phase, epoch=epoch, **figures, learning_rate=settings.learning_rate, scores=scores, best=improved,
                      seconds=time.perf_counter() - start)
    best.restore(module)
    module.eval()
    return best


# --- phases 1 to 3 -------------------------------------------------------------------------------------------------------

def train_teacher(teacher, train, settings, selection, log):
    """Phase 1. Reads train and the settings; leaves the best epoch's weights in teacher. Returns the Best."""
    device, optimizer = torch.device(settings.device), make_optimizer(teacher, settings.learning_rate, settings.weight_decay)

    def step(indices):
        batch = train.batch(indices, device)
        logits, _ = teacher(train.task.name, batch)
        loss = F.cross_entropy(logits, batch.labels)
        return {"loss": loss, "gradient_norm": update(loss, teacher, optimizer, settings.max_grad_norm)}

    return run_epochs("teacher", teacher, train, step, settings, selection, log)


def distill_student(phase, student, teacher_heads, teacher_outputs, train, settings, selection, log):
    """Phase 2. Reads train and, by example, the frozen teacher; leaves the best epoch's weights in student.

    phase: "kd", or "student" for the undistilled row (alpha = beta = 0), which needs no teacher: pass None for it.
    Returns the Best.
    """
    task, device = train.task.name, torch.device(settings.device)
    optimizer = make_optimizer(student, settings.learning_rate, settings.weight_decay)

    def step(indices):
        batch = train.batch(indices, device)
        pooled, states = student.encoder(batch, layers=settings.beta > 0)
        logits = student.heads(task, pooled)
        ce = F.cross_entropy(logits, batch.labels)
        soft = pkd = ce.new_zeros(())
        if teacher_outputs is not None:
            teacher_pooled, teacher_states = teacher_outputs.outputs(train, indices, layers=settings.beta > 0)
            with torch.no_grad():
                teacher_logits = teacher_heads(task, teacher_pooled)
            soft = soft_loss(teacher_logits, logits, settings.temperature)
            if settings.beta > 0:
                pkd = pkd_loss(states, teacher_states[:len(states)])
        loss = distillation_loss(soft, ce, pkd, settings.alpha, settings.beta)
        norm = update(loss, student, optimizer, settings.max_grad_norm)
        return {"loss": loss, "ce": ce, "soft": soft, "pkd": pkd, "gradient_norm": norm}

    return run_epochs(phase, student, train, step, settings, selection, log)


def train_meta_teacher(meta_teacher, teacher_outputs, student_outputs, quiz, settings, selection, log):
    """Phase 3. meta_teacher: Heads that start as the teacher's. Reads quiz and, by example, both frozen encoders' pooled
    outputs h_T and h_S; leaves the best pass's weights in meta_teacher. Returns the Best."""
    task, loss_of = quiz.task.name, META_LOSSES[settings.loss]
    optimizer = make_optimizer(meta_teacher, settings.learning_rate, settings.weight_decay)
    all_labels = quiz.labels.to(settings.device)

    def step(indices):
        labels = all_labels[torch.from_numpy(indices).to(settings.device)]
        logits_teacher = meta_teacher(task, teacher_outputs.outputs(quiz, indices)[0])
        logits_student = meta_teacher(task, student_outputs.outputs(quiz, indices)[0])
        loss = loss_of(logits_teacher, logits_student, labels)
        with torch.no_grad():
            figures = {"loss": loss, "p_teacher": true_class_probability(logits_teacher, labels).mean(),
                       "p_student": true_class_probability(logits_student, labels).mean()}
        return {**figures, "gradient_norm": update(loss, meta_teacher, optimizer, settings.max_grad_norm)}

    return run_epochs("meta_teacher", meta_teacher, quiz, step, settings, selection, log)
