"""Phases 1 to 3: their losses, each a pure function of tensors, and the loop over epochs that they share.

Phase 1 fine-tunes the teacher, phase 2 distils the student, phase 3 trains the meta-teacher's head on quiz.
After phase 1 the teacher's encoder is frozen; the later phases ask a FrozenEncoder for its outputs by
example. What differs between kinds of tasks (CE, p(y|x), the soft loss) comes from tasks.KINDS as `rules`.
"""
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from bookkeeping.errors import TrainingError
from bookkeeping.states import GlobalGenerators, Meter, NoSaver, Trained
from data_utils import RandomStreams, Split, to_device
from metrics import Best, score
from models import of_layers, set_training

# --- losses -------------------------------------------------------------------------------------------------

def pkd_loss(student_states, teacher_states):
    """pkd = mean squared difference of the L2-normalised [CLS] states of layers 1..n-1 (METHOD.md phase 2).
    Both: (n - 1, batch, hidden) -> scalar. It is a mean over entries, 2 (1 - cos) / hidden, which beta is
    chosen for. A student of one layer has no such layer: 0."""
    if student_states.shape[0] == 0:
        return student_states.new_zeros(())
    return F.mse_loss(F.normalize(student_states, dim=-1), F.normalize(teacher_states, dim=-1))


def teacher_layers(depth, nlayers, pkd_layers):
    """The teacher's layers that layers 1..n-1 of the student are compared with by pkd, counted from 1
    (METHOD.md row 22). depth: the teacher's layers N, at least n. "first": 1..n-1; "skip": every (N/n)-th,
    rounded down where n does not divide N."""
    return [number * depth // nlayers if pkd_layers == "skip" else number for number in range(1, nlayers)]


def soft_logits_loss(teacher_logits, student_logits):
    """soft = MSE(T'(h_T), S), of the logits, mean over all elements, without a temperature (METHOD.md row
    23). Both: (batch, classes)."""
    return F.mse_loss(student_logits, teacher_logits)


def distillation_loss(soft, ce, pkd, alpha, beta):
    """L = alpha * soft + (1 - alpha) * CE + beta * pkd (METHOD.md phase 2). Scalars."""
    return alpha * soft + (1 - alpha) * ce + beta * pkd


def collaborative_loss(outputs_teacher, outputs_student, labels, rules):
    """L = 0.5 * CE(T'(h_T), y) + 0.5 * CE(T'(h_S), y) (METHOD.md phase 3). Outputs of T' on both encoders'
    pooled outputs: (batch, classes)."""
    return 0.5 * rules.loss(outputs_teacher, labels) + 0.5 * rules.loss(outputs_student, labels)


def competitive_loss(outputs_teacher, outputs_student, labels, rules):
    """L = CE(T'(h_T), y) - mean p_T'(y|h_T) + mean p_T'(y|h_S) (METHOD.md phase 3). Arguments as in
    collaborative_loss."""
    return (rules.loss(outputs_teacher, labels) - rules.agreement(outputs_teacher, labels).mean()
            + rules.agreement(outputs_student, labels).mean())


META_LOSSES = {"col": collaborative_loss, "com": competitive_loss}


# --- what the loops share -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Training:
    """Settings of a phase. A phase reads no others, and all of them are in its identity."""
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    head_dropout: float
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
    """Settings of phase 2. compared: the teacher's layers that pkd compares, as teacher_layers gives them;
    none without pkd. soft_loss is the protocol's."""
    nlayers: int
    temperature: float
    alpha: float
    beta: float
    compared: list
    soft_loss: str


@dataclass(frozen=True)
class MetaTraining(Training):
    """Settings of phase 3; loss: col or com."""
    loss: str


@dataclass
class Evaluator:
    """Scores of a model on the splits that are looked at, and which of them selects (METHOD.md row 18).

    predict(split): outputs (examples, classes) of the model as it is now. splits: name -> Split, those
    scored. rule: "main_metric" of the task, or "f1_or_accuracy", which also keeps nothing that scores 0.
    answers: {split name: what the model answered} at the last evaluation.
    """
    predict: Callable
    splits: dict
    select_on: str
    rule: str
    answers: dict = field(default_factory=dict)

    def scores(self):
        """{split name: what metrics.score gives, and the mean CE as loss}."""
        outputs = {name: self.predict(split) for name, split in self.splits.items()}
        self.answers = {
            name: split.task.rules.answer(outputs[name]).tolist() for name, split in self.splits.items()
        }
        return {name: {**score(split.task, self.answers[name], split.labels),
                       "loss": split.task.rules.loss(outputs[name], split.labels).item()}
                for name, split in self.splits.items()}

    def main(self, scores):
        """The figure that selects, on the selecting split."""
        metrics, found = self.splits[self.select_on].task.metrics, scores[self.select_on]
        wanted = ["f1" if "f1" in metrics else "accuracy"] if self.rule == "f1_or_accuracy" else []
        return next(found[name] for name in (*wanted, *metrics) if name in found)

    def best(self):
        """An empty Best for this rule."""
        return Best(0.0) if self.rule == "f1_or_accuracy" else Best()


def make_optimizer(module, learning_rate, settings):
    """AdamW; weight_decay_on "matrices": no decay on biases and LayerNorm, which are the vectors (METHOD.md
    row 9)."""
    decayed, spared = [], []
    for parameter in module.parameters():
        is_spared = settings.weight_decay_on == "matrices" and parameter.ndim <= 1
        (spared if is_spared else decayed).append(parameter)
    return torch.optim.AdamW([{"params": decayed, "weight_decay": settings.weight_decay},
                              {"params": spared, "weight_decay": 0.0}], lr=learning_rate, fused=True)


def backward(loss, module, max_grad_norm):
    """Add the loss's gradients to the module's and clip the L2 norm of all of them. Returns the norm before
    clipping."""
    loss.backward()
    return torch.nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm).detach()


def apply_gradients(optimizer, settings):
    """Step, then forget the gradients: to None, or, as torch did before 2.0, to zeros, which AdamW still
    moves weights by through momentum and decay (METHOD.md row 20)."""
    optimizer.step()
    optimizer.zero_grad(set_to_none=settings.zero_grad == "none")


def finish_best(best, module, phase):
    """Put the best weights into the module, for use without training. TrainingError if nothing was good
    enough."""
    if best.weights is None:
        raise TrainingError(
            f"phase {phase}: no epoch or episode scored above {best.score:g}, so nothing was kept; train "
            "longer, or --set selection=main_metric")
    best.restore(module)
    module.eval()


# --- the loop of phases 1 to 3 ------------------------------------------------------------------------------

@dataclass
class Epoch:
    """How far a phase has come. number: of the epoch under way, from 1; order: its batches, None before it
    begins; evaluated: whether the module ever was (for the choice `dropout`); seconds: of this epoch so
    far."""
    number: int = 1
    order: list | None = None
    evaluated: bool = False
    seconds: float = 0.0


@dataclass
class EpochLoop:
    """What the loop of a phase works with; none of it changes but what the modules and streams hold.

    step(indices, done) computes the gradients of one batch of `split` and returns its figures as {name:
    scalar tensor}, `loss` among them; done: share of all steps that were made, from 0 to 1. log: takes
    event(**values). evaluated: as in Epoch. before: called as an epoch begins. epoch_steps: batches of an
    epoch, where that is not one pass over the split. update: "each_step", or "each_episode", an epoch's
    gradients summed up as phase 4 may do it (METHOD.md row 12). beside: {name: what else steps change}, for
    the state.
    """
    phase: str
    module: torch.nn.Module
    split: Split
    step: Callable
    settings: Training
    evaluator: Evaluator
    streams: RandomStreams
    log: object
    evaluated: bool = False
    before: Callable = lambda: None
    epoch_steps: int | None = None
    update: str = "each_step"
    beside: dict = field(default_factory=dict)

    def new_state(self):
        """What must survive a kill."""
        optimizer = make_optimizer(self.module, self.settings.learning_rate, self.settings)
        return {
            "model": Trained(self.module, optimizer), "streams": self.streams, "best": self.evaluator.best(),
            "epoch": Epoch(evaluated=self.evaluated), "meter": Meter(self.module), "log": self.log,
            **self.beside
        }

    def steps(self):
        """Steps of an epoch."""
        return self.epoch_steps or -(-len(self.split) // self.settings.batch_size)


def run_epochs(*loops, saver=None):
    """Phases 1 to 3: step over shuffled batches, evaluate, keep the best epoch's weights. Several loops of as
    many epochs take turns, an epoch each (METHOD.md row 11). Goes on from the saver's state, if there is one;
    leaves the best weights in the modules. Returns the Bests."""
    saver = saver or NoSaver()
    state = {loop.phase: loop.new_state() for loop in loops} | {"random": GlobalGenerators()}
    saver.restore(state, loops[0].settings.device)
    epochs = loops[0].settings.epochs
    with loops[0].log.progress(" and ".join(loop.phase for loop in loops),
                               epochs * sum(loop.steps() for loop in loops)) as bar:
        for loop in loops:
            epoch = state[loop.phase]["epoch"]
            bar.update((epoch.number - 1) * loop.steps() +
                       (len(state[loop.phase]["meter"].steps) if epoch.order else 0))
        for number in range(1, epochs + 1):
            for loop in loops:
                if state[loop.phase]["epoch"].number == number:
                    run_epoch(loop, state, saver, bar)
    for loop in loops:
        finish_best(state[loop.phase]["best"], loop.module, loop.phase)
    return [state[loop.phase]["best"] for loop in loops]


def run_epoch(loop, state, saver, bar):
    """One epoch of a phase, or the rest of it. state: of all loops that take turns, for the saver."""
    model, best, epoch, meter = (state[loop.phase][name] for name in ("model", "best", "epoch", "meter"))
    settings, start = loop.settings, time.perf_counter() - epoch.seconds
    if epoch.order is None:
        loop.before()
        epoch.order = loop.streams.batches(len(loop.split), settings.batch_size, "order",
                                           count=loop.epoch_steps)
        meter.begin(f"phase {loop.phase}, epoch {epoch.number}", settings.learning_rate)
    set_training(loop.module, settings.dropout, epoch.evaluated)
    finite = True
    for indices in epoch.order[len(meter.steps):]:
        done = ((epoch.number - 1) * loop.steps() + len(meter.steps)) / (settings.epochs * loop.steps())
        finite = meter.add(loop.step(indices, done), loop.split, indices)
        if not finite:
            break
        if loop.update == "each_step":
            apply_gradients(model.optimizer, settings)
        bar.update()
        epoch.seconds = time.perf_counter() - start
        saver.consider(state)
    if loop.update == "each_episode" and finite:
        apply_gradients(model.optimizer, settings)
    figures, scores = meter.means(), loop.evaluator.scores()
    chosen = loop.evaluator.main(scores)
    improved = best.offer(chosen, epoch.number, scores, loop.module, loop.evaluator.answers)
    bar.set_postfix(loss=f"{figures['loss']:.4f}", score=f"{chosen:.4f}", best=f"{best.score:.4f}")
    loop.log.event(phase=loop.phase, epoch=epoch.number, **figures, learning_rate=settings.learning_rate,
                   scores=scores, best=improved, seconds=time.perf_counter() - start)
    epoch.number, epoch.order, epoch.evaluated, epoch.seconds = epoch.number + 1, None, True, 0.0
    saver.consider(state, at_end=True)


# --- phases 1 to 3 ------------------------------------------------------------------------------------------

def train_teacher(teacher, train, settings, evaluator, streams, log, saver=None):
    """Phase 1: CE on train. Leaves the best epoch's weights in teacher. Returns the Best."""
    device, rules = torch.device(settings.device), train.task.rules

    def step(indices, done):
        batch = train.batch(indices, device)
        outputs, _ = teacher(train.task.name, batch)
        loss = rules.loss(outputs, batch.labels)
        return {"loss": loss, "gradient_norm": backward(loss, teacher, settings.max_grad_norm)}

    loop = EpochLoop("teacher", teacher, train, step, settings, evaluator, streams, log)
    return run_epochs(loop, saver=saver)[0]


def distillation_loop(phase, student, teacher_heads, teacher_outputs, train, settings, evaluator, streams,
                      log, **more):
    """The EpochLoop of phase 2; arguments as in distill_student."""
    task, device, rules = train.task.name, torch.device(settings.device), train.task.rules

    def step(indices, done):
        batch = train.batch(indices, device)
        pooled, states = student.encoder(batch, layers=settings.beta > 0)
        outputs = student.heads(task, pooled)
        ce = rules.loss(outputs, batch.labels)
        soft = pkd = ce.new_zeros(())
        if teacher_outputs is not None:
            deepest = max(settings.compared, default=0)
            teacher_pooled, teacher_states = teacher_outputs.outputs(train, indices, layers=deepest)
            with torch.no_grad():
                teacher_logits = teacher_heads.eval()(task, teacher_pooled)
            if settings.soft_loss == "probabilities":
                soft = rules.soft_loss(teacher_logits, outputs, settings.temperature)
            else:
                soft = soft_logits_loss(teacher_logits, outputs)
            if settings.beta > 0:
                pkd = pkd_loss(states[:-1], of_layers(teacher_states, settings.compared))
        loss = distillation_loss(soft, ce, pkd, settings.alpha, settings.beta)
        norm = backward(loss, student, settings.max_grad_norm)
        return {"loss": loss, "ce": ce, "soft": soft, "pkd": pkd, "gradient_norm": norm}

    return EpochLoop(phase, student, train, step, settings, evaluator, streams, log, **more)


def distill_student(phase, student, teacher_heads, teacher_outputs, train, settings, evaluator, streams, log,
                    saver=None, **more):
    """Phase 2. Reads train and, by example, the frozen teacher; leaves the best epoch's weights in student.

    phase: "kd", or "student" for the undistilled row (alpha = beta = 0), which needs no teacher: pass None
    for it; or "kd_200", which goes on from kd's student for as many steps and evaluations as phase 4. more:
    for EpochLoop. Returns the Best.
    """
    return run_epochs(
        distillation_loop(phase, student, teacher_heads, teacher_outputs, train, settings, evaluator, streams,
                          log, **more), saver=saver)[0]


def meta_teacher_loop(meta_teacher, teacher_outputs, student_outputs, quiz, settings, evaluator, streams, log,
                      student_moves=False):
    """The EpochLoop of phase 3; arguments as in train_meta_teacher. student_moves: the student is another one
    each epoch."""
    task, rules, loss_of = quiz.task.name, quiz.task.rules, META_LOSSES[settings.loss]
    all_labels = quiz.labels.to(settings.device)

    def step(indices, done):
        labels = all_labels[to_device(indices, settings.device)]
        outputs_teacher = meta_teacher(task, teacher_outputs.outputs(quiz, indices)[0])
        outputs_student = meta_teacher(task, student_outputs.outputs(quiz, indices)[0])
        loss = loss_of(outputs_teacher, outputs_student, labels, rules)
        with torch.no_grad():
            figures = {"loss": loss, "ce_teacher": rules.loss(outputs_teacher, labels),
                       "ce_student": rules.loss(outputs_student, labels),
                       "p_teacher": rules.agreement(outputs_teacher, labels).mean(),
                       "p_student": rules.agreement(outputs_student, labels).mean()}
        return {**figures, "gradient_norm": backward(loss, meta_teacher, settings.max_grad_norm)}

    # a copy of the teacher's heads, which were evaluated in phase 1
    return EpochLoop("meta_teacher", meta_teacher, quiz, step, settings, evaluator, streams, log,
                     evaluated=True, before=student_outputs.forget if student_moves else lambda: None)


def train_meta_teacher(meta_teacher, teacher_outputs, student_outputs, quiz, settings, evaluator, streams,
                       log, saver=None):
    """Phase 3. meta_teacher: Heads that start as the teacher's. Reads quiz and, by example, both frozen
    encoders' pooled outputs h_T and h_S; leaves the best pass's weights in meta_teacher. Returns the Best."""
    return run_epochs(
        meta_teacher_loop(meta_teacher, teacher_outputs, student_outputs, quiz, settings, evaluator, streams,
                          log), saver=saver)[0]
