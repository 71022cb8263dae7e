"""Phases 1 to 3: their losses, each a pure function of tensors, and the loops that call them.

Phase 1 fine-tunes the teacher, phase 2 distils the student, phase 3 trains the meta-teacher's head on quiz. After phase 1
the teacher's encoder is frozen; the later phases ask a FrozenEncoder for its outputs by example.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from data_utils import cut_order
from metrics import Best, score
from models import set_training
from resume import NoSaver, prefixed, random_tensors, restore_random, restore_training, training_tensors, under


class TrainingError(Exception):
    """Training cannot go on (a loss or gradient is not finite). The message says where and what to try. step: its number within
    the epoch or episode, from 0, where there is one."""

    def __init__(self, message, step=None):
        super().__init__(message)
        self.step = step


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
    dropout: str          # from here on, choices of the protocol
    weight_decay_on: str
    selection: str
    data_order: str
    zero_grad: str


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


@dataclass
class Selection:
    """Scores of a model on the splits that are looked at, and which of them selects (METHOD.md row 18).

    predict(split): logits (examples, classes) of the model as it is now. splits: name -> Split, those scored. rule:
    "main_metric" of the task, or "f1_or_accuracy", which also keeps nothing that scores 0. answers: {split name: class
    numbers} of the last look.
    """
    predict: Callable
    splits: dict
    select_on: str
    rule: str
    answers: dict = field(default_factory=dict)

    def scores(self):
        """{split name: what metrics.score gives, and the mean cross-entropy as loss}."""
        logits = {name: self.predict(split) for name, split in self.splits.items()}
        self.answers = {name: values.argmax(-1).tolist() for name, values in logits.items()}
        return {name: {**score(split.task, self.answers[name], split.labels),
                       "loss": F.cross_entropy(logits[name], split.labels).item()} for name, split in self.splits.items()}

    def main(self, scores):
        """The figure that selects, on the selecting split."""
        metrics = self.splits[self.select_on].task.metrics
        return scores[self.select_on]["f1" if self.rule == "f1_or_accuracy" and "f1" in metrics else metrics[0]]

    def best(self):
        """An empty Best for this rule."""
        return Best(0.0) if self.rule == "f1_or_accuracy" else Best()


def make_optimizer(module, learning_rate, settings):
    """AdamW; weight_decay_on "matrices": no decay on biases and LayerNorm, which are the vectors (METHOD.md row 9)."""
    decayed, spared = [], []
    for parameter in module.parameters():
        (spared if settings.weight_decay_on == "matrices" and parameter.ndim <= 1 else decayed).append(parameter)
    return torch.optim.AdamW([{"params": decayed, "weight_decay": settings.weight_decay}, {"params": spared, "weight_decay": 0.0}],
                             lr=learning_rate, fused=True)


def backward(loss, module, max_grad_norm):
    """Add the loss's gradients to the module's and clip the L2 norm of all of them. Returns the norm before clipping."""
    loss.backward()
    return torch.nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm).detach()


def apply_gradients(optimizer, settings):
    """Step, then forget the gradients: to None, or, as torch did before 2.0, to zeros, which AdamW still moves weights
    by through momentum and decay (METHOD.md row 20)."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=settings.zero_grad == "none")


def mean_figures(steps, where, learning_rate):
    """Means over steps of their figures, fetched from the device once. steps: a list of {name: scalar tensor}.
    TrainingError at the first figure that is not finite."""
    table = figure_table(steps)
    bad = (~table.isfinite()).nonzero()
    if len(bad):
        step, column = bad[0].tolist()
        raise TrainingError(f"{where}, step {step + 1}: {list(steps[0])[column]} is {table[step, column].item()} at learning rate "
                            f"{learning_rate:g}", step)
    return dict(zip(steps[0], table.mean(0).tolist()))


def detached(figures):
    """The figures without the graphs that they came from, which would stay in memory until the epoch's end."""
    return {name: value.detach() for name, value in figures.items()}


def figure_table(steps):
    """(steps, figures) float64 on the CPU."""
    return torch.stack([torch.stack([value.detach().double() for value in step.values()]) for step in steps]).cpu()


def is_finite(figures):
    """Whether all figures of a step are, as far as they can be looked at without waiting for a GPU."""
    return all(value.device.type != "cpu" or bool(value.isfinite()) for value in figures.values())


def weights_are_finite(module):
    """Whether all weights are; looked at once an epoch or episode, and before a state is saved."""
    return bool(torch.stack([parameter.detach().isfinite().all() for parameter in module.parameters()]).all())


def checked_means(steps, where, learning_rate, examples):
    """mean_figures, whose TrainingError says more. examples(step): (split, indices) of what that step trained on."""
    try:
        return mean_figures(steps, where, learning_rate)
    except TrainingError as error:
        raise explain(error, *examples(error.step)) from None


def check_weights(module, step, where, learning_rate, examples):
    """TrainingError if `step`, the last one, left weights that are not finite. examples: as in checked_means."""
    if not weights_are_finite(module):
        raise explain(f"{where}, step {step + 1}: weights after it are not finite at learning rate {learning_rate:g}", *examples(step))


def explain(error, split, indices):
    """The TrainingError with the examples of its step and the way out."""
    examples = ", ".join(str(split.idx[number]) for number in indices)
    return TrainingError(f"{error}; examples of {split.task.name} {split.name}: idx {examples}. The last saved state, from before this "
                         "step, and all finished phases are kept: lower the rate or --max_grad_norm and use another --output_dir, or mend "
                         "the data or the checkpoint")


class Epochs:
    """The epochs of a phase: step(indices) over shuffled batches of split, scores after each, the best weights kept.

    step computes the gradients of one batch and returns its figures as {name: scalar tensor}, `loss` among them. draws: a Draws.
    fresh: the module was never evaluated before (for the choice `dropout`). before: called as an epoch begins. epoch_steps:
    batches of an epoch, where that is not one pass over the split. update: "each_step", or "each_episode", an epoch's gradients summed
    up as phase 4 may do it (METHOD.md row 12).
    """

    def __init__(self, phase, module, optimizer, split, step, settings, selection, draws, log, fresh=True, before=lambda: None,
                 epoch_steps=None, update="each_step"):
        self.phase, self.module, self.optimizer, self.split, self.step, self.settings = phase, module, optimizer, split, step, settings
        self.selection, self.draws, self.log, self.before, self.evaluated = selection, draws, log, before, not fresh
        self.update = update
        self.best, self.epoch = selection.best(), 0  # epochs that are finished
        self.count, self.epoch_steps = epoch_steps, epoch_steps or -(-len(split) // settings.batch_size)
        self.order, self.done, self.seconds = None, [], 0.0  # of the epoch that is under way, if one is: batches, steps' figures

    def run_one(self, bar, after_step=lambda: None):
        """The next epoch, or the rest of it."""
        start, settings = time.perf_counter() - self.seconds, self.settings
        if self.order is None:
            self.before()
            self.order, self.done = self.draws.batches(len(self.split), settings.batch_size, "order", count=self.count), []
        set_training(self.module, settings.dropout, self.evaluated)
        while len(self.done) < len(self.order):
            if not self.train_on(self.order[len(self.done)]):
                break
            bar.update()
            self.seconds = time.perf_counter() - start
            after_step()
        if self.update == "each_episode" and is_finite(self.done[-1]):
            apply_gradients(self.optimizer, self.settings)
        figures = self.checked()
        scores = self.selection.scores()
        self.epoch, self.order, self.seconds, self.evaluated = self.epoch + 1, None, 0.0, True
        chosen = self.selection.main(scores)
        improved = self.best.offer(chosen, self.epoch, scores, self.module, self.selection.answers)
        bar.set_postfix(loss=f"{figures['loss']:.4f}", score=f"{chosen:.4f}", best=f"{self.best.score:.4f}")
        self.log.event(phase=self.phase, epoch=self.epoch, **figures, learning_rate=settings.learning_rate, scores=scores, best=improved,
                       seconds=time.perf_counter() - start)

    def train_on(self, indices):
        """One step on these examples; False, and no update, if its figures are not finite."""
        figures = self.step(indices)
        self.done.append(detached(figures))
        finite = is_finite(figures)
        if finite and self.update == "each_step":
            apply_gradients(self.optimizer, self.settings)
        return finite

    def checked(self):
        """Mean figures of the epoch so far; TrainingError if one of them, or a weight after its last step, is not finite."""
        def examples(step):
            return self.split, self.order[step]

        where, rate = f"phase {self.phase}, epoch {self.epoch + 1}", self.settings.learning_rate
        means = checked_means(self.done, where, rate, examples)
        check_weights(self.module, len(self.done) - 1, where, rate, examples)
        return means

    def state(self):
        """(tensors, values) from which load_state goes on at the same step. Only of finite figures and weights."""
        best, best_values = self.best.state()
        tensors = {**training_tensors(self.module, self.optimizer), **prefixed("best", best), **prefixed("draws", self.draws.state())}
        if self.order is not None:
            self.checked()
            tensors |= {"order": torch.from_numpy(np.concatenate(self.order)), "figures": figure_table(self.done)}
        return tensors, {"epoch": self.epoch, "evaluated": self.evaluated, "seconds": self.seconds, "best": best_values,
                         "figures": list(self.done[0]) if self.done else []}

    def load_state(self, tensors, values):
        """Take over what state gave."""
        restore_training(self.module, self.optimizer, tensors)
        self.best.load_state(under("best", tensors), values["best"])
        self.draws.load_state(under("draws", tensors))
        self.epoch, self.evaluated, self.seconds = values["epoch"], values["evaluated"], values["seconds"]
        if "order" in tensors:
            self.order = cut_order(tensors["order"].numpy(), self.settings.batch_size)
            self.done = [dict(zip(values["figures"], row)) for row in tensors["figures"].to(self.settings.device)]

    def finish(self):
        """Put the best epoch's weights into the module; returns the Best."""
        finish_best(self.best, self.module, self.phase)
        return self.best

    def steps(self):
        """Steps of the whole phase."""
        return self.settings.epochs * self.epoch_steps

    def steps_done(self):
        return self.epoch * self.epoch_steps + (len(self.done) if self.order is not None else 0)


def finish_best(best, module, phase):
    """Put the best weights into the module, for use without training. TrainingError if nothing was good enough to keep."""
    if best.weights is None:
        raise TrainingError(f"phase {phase}: no epoch or episode scored above {best.score:g}, so nothing was kept; train longer, or "
                            "--set selection=main_metric")
    best.restore(module)
    module.eval()


def run_epochs(*loops, log, saver=None):
    """Run loops of as many epochs, epoch by epoch in turn, from where their state says; returns their Bests."""
    saver = saver or NoSaver()

    def collect():
        parts = {loop.phase: loop.state() for loop in loops}
        tensors = random_tensors()
        for phase, (found, _) in parts.items():
            tensors |= prefixed(phase, found)
        return tensors, {phase: {**values, "lines": log.lines.get(phase, [])} for phase, (_, values) in parts.items()}

    saved = saver.load()
    if saved:
        tensors, values = saved
        for loop in loops:
            loop.load_state(under(loop.phase, tensors), values[loop.phase])
            log.replay(loop.phase, values[loop.phase]["lines"])
        restore_random(tensors)
    with log.progress(" and ".join(loop.phase for loop in loops), sum(loop.steps() for loop in loops)) as bar:
        if saved:
            bar.update(sum(loop.steps_done() for loop in loops))
        for epoch in range(loops[0].settings.epochs):
            for loop in loops:
                if loop.epoch == epoch:
                    loop.run_one(bar, lambda: saver.consider(collect))
                    saver.consider(collect, at_end=True)
    return [loop.finish() for loop in loops]


# --- phases 1 to 3 -------------------------------------------------------------------------------------------------------

def teacher_epochs(teacher, train, settings, selection, draws, log):
    """The Epochs of phase 1; arguments as in train_teacher."""
    device, optimizer = torch.device(settings.device), make_optimizer(teacher, settings.learning_rate, settings)

    def step(indices):
        batch = train.batch(indices, device)
        logits, _ = teacher(train.task.name, batch)
        loss = F.cross_entropy(logits, batch.labels)
        figures = {"loss": loss, "gradient_norm": backward(loss, teacher, settings.max_grad_norm)}
        return figures

    return Epochs("teacher", teacher, optimizer, train, step, settings, selection, draws, log)


def train_teacher(teacher, train, settings, selection, draws, log, saver=None):
    """Phase 1. Reads train and the settings; leaves the best epoch's weights in teacher. Returns the Best."""
    return run_epochs(teacher_epochs(teacher, train, settings, selection, draws, log), log=log, saver=saver)[0]


def distillation_epochs(phase, student, teacher_heads, teacher_outputs, train, settings, selection, draws, log, **more):
    """The Epochs of phase 2; arguments as in distill_student. more: for Epochs."""
    task, device = train.task.name, torch.device(settings.device)
    optimizer = make_optimizer(student, settings.learning_rate, settings)

    def step(indices):
        batch = train.batch(indices, device)
        pooled, states = student.encoder(batch, layers=settings.beta > 0)
        logits = student.heads(task, pooled)
        ce = F.cross_entropy(logits, batch.labels)
        soft = pkd = ce.new_zeros(())
        if teacher_outputs is not None:
            teacher_pooled, teacher_states = teacher_outputs.outputs(train, indices, layers=len(states) if settings.beta > 0 else 0)
            with torch.no_grad():
                teacher_logits = teacher_heads.eval()(task, teacher_pooled)
            soft = soft_loss(teacher_logits, logits, settings.temperature)
            if settings.beta > 0:
                pkd = pkd_loss(states, teacher_states)
        loss = distillation_loss(soft, ce, pkd, settings.alpha, settings.beta)
        norm = backward(loss, student, settings.max_grad_norm)
        figures = {"loss": loss, "ce": ce, "soft": soft, "pkd": pkd, "gradient_norm": norm}
        return figures

    return Epochs(phase, student, optimizer, train, step, settings, selection, draws, log, **more)


def distill_student(phase, student, teacher_heads, teacher_outputs, train, settings, selection, draws, log, saver=None, **more):
    """Phase 2. Reads train and, by example, the frozen teacher; leaves the best epoch's weights in student.

    phase: "kd", or "student" for the undistilled row (alpha = beta = 0), which needs no teacher: pass None for it; or "kd_200", which
    goes on from kd's student for as many steps and looks at dev as phase 4. more: for Epochs. Returns the Best.
    """
    epochs = distillation_epochs(phase, student, teacher_heads, teacher_outputs, train, settings, selection, draws, log, **more)
    return run_epochs(epochs, log=log, saver=saver)[0]


def meta_teacher_epochs(meta_teacher, teacher_outputs, student_outputs, quiz, settings, selection, draws, log, student_moves=False):
    """The Epochs of phase 3; arguments as in train_meta_teacher. student_moves: the student is another one each epoch."""
    task, loss_of = quiz.task.name, META_LOSSES[settings.loss]
    optimizer = make_optimizer(meta_teacher, settings.learning_rate, settings)
    all_labels = quiz.labels.to(settings.device)

    def step(indices):
        labels = all_labels[torch.from_numpy(indices).to(settings.device)]
        logits_teacher = meta_teacher(task, teacher_outputs.outputs(quiz, indices)[0])
        logits_student = meta_teacher(task, student_outputs.outputs(quiz, indices)[0])
        loss = loss_of(logits_teacher, logits_student, labels)
        with torch.no_grad():
            figures = {"loss": loss, "ce_teacher": F.cross_entropy(logits_teacher, labels),
                       "ce_student": F.cross_entropy(logits_student, labels),
                       "p_teacher": true_class_probability(logits_teacher, labels).mean(),
                       "p_student": true_class_probability(logits_student, labels).mean()}
        figures["gradient_norm"] = backward(loss, meta_teacher, settings.max_grad_norm)
        return figures

    # a copy of the teacher's heads, which were evaluated in phase 1
    return Epochs("meta_teacher", meta_teacher, optimizer, quiz, step, settings, selection, draws, log, fresh=False,
                  before=student_outputs.forget if student_moves else lambda: None)


def train_meta_teacher(meta_teacher, teacher_outputs, student_outputs, quiz, settings, selection, draws, log, saver=None):
    """Phase 3. meta_teacher: Heads that start as the teacher's. Reads quiz and, by example, both frozen encoders' pooled
    outputs h_T and h_S; leaves the best pass's weights in meta_teacher. Returns the Best."""
    epochs = meta_teacher_epochs(meta_teacher, teacher_outputs, student_outputs, quiz, settings, selection, draws, log)
    return run_epochs(epochs, log=log, saver=saver)[0]


def alternate_phases(kd, meta_teacher, log, saver=None):
    """Phases 2 and 3 as the released code runs them: an epoch of each in turn (METHOD.md row 11). kd distils from the
    meta-teacher as the epoch before left it; meta_teacher, made with student_moves, reads the student of the same epoch.
    Both are Epochs of as many epochs. Returns both Bests."""
    return run_epochs(kd, meta_teacher, log=log, saver=saver)
