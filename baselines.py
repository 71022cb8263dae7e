"""Methods that MPDistil is compared with: one pure loss a method, and what it reads.

All are trained alike: the student starts as kd's does, from the first n layers of the pre-trained
checkpoint, and learns on train from the same frozen teacher, for as many epochs, at the same rate; dev is
looked at once an epoch and the best look is kept. Where a method's own setting is another one,
docs/BASELINES.md says so.

A loss is given Answers of both sides, the labels, the task's rules (tasks.KINDS) and the method's constants
(arguments.BASELINES); `done` is the share of its steps that were made, from 0 to 1. It returns {name:
scalar}, `loss` among them. For regression the rules put MSE to the label in the place of CE, and MSE of the
outputs in the place of a divergence.
"""
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bookkeeping.errors import InputError
from bookkeeping.states import Trained
from data_utils import seeded_generator
from meta_policy import (
    EpochLoop,
    Training,
    apply_gradients,
    backward,
    distillation_loss,
    make_optimizer,
    pkd_loss,
    run_epochs,
    teacher_layers,
)
from models import (
    ATTENTION,
    STACKED,
    init_linear,
    of_layers,
    set_training,
    stack_of,
    watched_attention,
    with_layers,
)


@dataclass(frozen=True)
class Answers:
    """What one side says of a batch. logits: (batch, classes); states: [CLS] states of the layers that the
    method asks for, (layers, batch * choices, hidden); or, for a method that reads them, those of all tokens,
    (layers, batch * choices, tokens, hidden), with mask: (batch * choices, tokens), 1 at real tokens. scores,
    values: of the attention in the same layers but the embeddings, (layers, batch * choices, heads, tokens,
    tokens), before the softmax, and (layers, batch * choices, heads, tokens, width of a head)."""
    logits: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    values: torch.Tensor | None = None


@dataclass(frozen=True)
class Baseline:
    """A method. source: its paper; loss(student, teacher, labels, rules, constants, done); layers(depth,
    nlayers): (the student's layers, the teacher's) whose [CLS] states it reads, counted from 1; where the
    teacher's are more, the epoch's are drawn. tokens: whether it reads the states of all tokens instead, for
    which the teacher runs at every step, 0 being the embeddings; attention: whether it reads attention scores
    and values too; teacher_loss(student, teacher, labels, rules, constants): of a teacher that learns too, a
    step of its own before each of the student's; learnt(hidden, constants, seed): modules that are learnt
    beside the student; from_quiz: whether the teacher learns from what its student makes of quiz; assistant:
    whether the student's teacher is an assistant, halfway between in depth, which the same loss distils from
    the teacher first; replaces: whether the student starts as the fine-tuned teacher's first layers and its
    layers replace the teacher's within one network, whose answers are the loss's `student`."""
    source: str
    loss: Callable
    layers: Callable = lambda depth, nlayers: ([], [])
    tokens: bool = False
    attention: bool = False
    teacher_loss: Callable | None = None
    learnt: Callable | None = None
    from_quiz: bool = False
    assistant: bool = False
    replaces: bool = False

    @property
    def teacher_learns(self):
        return bool(self.teacher_loss) or self.from_quiz

    @property
    def teacher_copies(self):
        """How many times the teacher's weights are in memory while the method trains: with their gradients
        and AdamW's moments where they learn, once where they run at every step, else not at all."""
        return 4 if self.teacher_learns else int(self.tokens or self.replaces)

    @property
    def keeps_more(self):
        """Whether a step keeps more than a student's own step and the copies of the teacher do: the graph of
        a virtual step, the teacher's layers in the student's network, attention scores."""
        return self.from_quiz or self.replaces or self.attention

    def passes(self, constants):
        """(the student's, the teacher's) passes over the batch of a step, a backward pass counted as two
        forward ones; of what is drawn the mean; about, where a step is of second order."""
        if self.from_quiz:  # through a virtual step and a quiz batch, both ways, then kd's step
            return 13, 4
        if self.teacher_loss:
            return 4, 4
        if self.replaces:  # of the teacher's layers forward and backward, without gradients of weights
            of_teacher = (1 - constants["start"]) * constants["share"] / 2
            return 3 * (1 - of_teacher), 2 * of_teacher
        return 3, int(self.tokens)


# --- losses -------------------------------------------------------------------------------------------------

def hinton_kd(student, teacher, labels, rules, constants, done):
    """(1 - a) CE(S(x), y) + a T^2 KL(p_T(x; T) || p_S(x; T)) (Hinton, Vinyals and Dean 2015)."""
    ce = rules.loss(student.logits, labels)
    soft = rules.divergence(teacher.logits, student.logits, constants["temperature"])
    return {"loss": (1 - constants["alpha"]) * ce + constants["alpha"] * soft, "ce": ce, "soft": soft}


def patient_distance(student_states, teacher_states):
    """|| s / |s| - t / |t| ||^2, the sum over hidden, the mean over batch and layers (Sun et al. 2019). Both:
    (layers, batch, hidden) -> scalar; 0 without layers."""
    if not len(student_states):
        return student_states.new_zeros(())
    difference = F.normalize(student_states, dim=-1) - F.normalize(teacher_states, dim=-1)
    return difference.square().sum(-1).mean()


def pkd(student, teacher, labels, rules, constants, done):
    """hinton_kd + b * patient_distance (Sun et al. 2019)."""
    found = hinton_kd(student, teacher, labels, rules, constants, done)
    patient = patient_distance(student.states, teacher.states)
    return {**found, "loss": found["loss"] + constants["beta"] * patient, "pkd": patient}


def attended(student_states, teacher_states):
    """Each student layer's mixture of all teacher layers: sum_j w_lj t_j with w_l = softmax_j(s_l . t_j)
    (Passban et al. 2021). (n, batch, hidden), (N, batch, hidden) -> (n, batch, hidden)."""
    weights = torch.einsum("lbh,jbh->lbj", student_states, teacher_states).softmax(-1)
    return torch.einsum("lbj,jbh->lbh", weights, teacher_states)


def alp_kd(student, teacher, labels, rules, constants, done):
    """a CE + b T^2 KL(p_T || p_S) + c sum over the student's layers of MSE(s_l, attended_l) (Passban et al.
    2021)."""
    ce = rules.loss(student.logits, labels)
    soft = rules.divergence(teacher.logits, student.logits, constants["temperature"])
    mixed = attended(student.states, teacher.states)
    layers = (student.states - mixed).square().mean((1, 2)).sum()
    loss = constants["ce"] * ce + constants["soft"] * soft + constants["layers"] * layers
    return {"loss": loss, "ce": ce, "soft": soft, "layers": layers}


def annealing_factor(done, share, steps):
    """f: 1 / steps, 2 / steps, ... 1 in equal parts of the first `share` of the training (Jafari et al.
    2021), then 1."""
    return min(steps, 1 + int(done / share * steps + 1e-9)) / steps


def annealing_kd(student, teacher, labels, rules, constants, done):
    """In the first part of the training MSE(z_S, f z_T) with f from annealing_factor, then CE(S(x), y)
    (Jafari et al. 2021). z: logits."""
    if done >= constants["share"]:
        ce = rules.loss(student.logits, labels)
        return {"loss": ce, "ce": ce, "soft": torch.zeros_like(ce)}
    factor = annealing_factor(done, constants["share"], constants["steps"])
    soft = F.mse_loss(student.logits, factor * teacher.logits)
    return {"loss": soft, "ce": torch.zeros_like(soft), "soft": soft}


def continuation_kd(student, teacher, labels, rules, constants, done):
    """psi CE + (1 - psi) max(0, MSE(z_S, f z_T) - m f), psi from 0 to 1/2 in the first part of the training,
    f from annealing_factor; then CE alone (Jafari et al. 2022)."""
    ce = rules.loss(student.logits, labels)
    factor = annealing_factor(done, constants["share"], constants["steps"])
    soft = (F.mse_loss(student.logits, factor * teacher.logits) - constants["margin"] * factor).clamp(min=0)
    psi = 1.0 if done >= constants["share"] else 0.5 * done / constants["share"]
    return {"loss": psi * ce + (1 - psi) * soft, "ce": ce, "soft": soft}


def masked_mean(values, mask):
    """The mean over the places where mask is 1. mask: as values, or to be expanded to their shape."""
    weights = mask.to(values.dtype).expand(values.shape)
    return (values * weights).sum() / weights.sum()


def token_mean(states, mask):
    """The mean over the real tokens. (layers, rows, tokens, hidden), (rows, tokens) -> (layers, rows,
    hidden)."""
    weights = mask.to(states.dtype)[..., None]
    return (states * weights).sum(-2) / weights.sum(-2)


def cosine_distance(student_states, teacher_states, mask):
    """1 - cos, the mean over the real tokens of all rows (Sanh et al. 2019). Both: (layers, rows, tokens,
    hidden)."""
    return masked_mean(1 - F.cosine_similarity(student_states, teacher_states, dim=-1), mask)


def distilbert(student, teacher, labels, rules, constants, done):
    """5 T^2 KL(p_T || p_S) + 2 CE + 1 (1 - cos of the last layers' tokens) (the loss of Sanh et al. 2019, on
    a task's train)."""
    ce = rules.loss(student.logits, labels)
    soft = rules.divergence(teacher.logits, student.logits, constants["temperature"])
    cosine = cosine_distance(student.states, teacher.states, student.mask)
    loss = constants["soft"] * soft + constants["ce"] * ce + constants["cosine"] * cosine
    return {"loss": loss, "ce": ce, "soft": soft, "cosine": cosine}


def rail_kd(student, teacher, labels, rules, constants, done, learnt):
    """1/3 CE + 1/3 T^2 KL(p_T || p_S) + 1/3 sum over the student's layers of || n(P mean H_S) - n(Q mean H_T)
    ||^2, the mean over rows (Haidar et al. 2022, layer by layer); n divides by the length, the means are over
    real tokens. learnt: P and Q, linear."""
    ce = rules.loss(student.logits, labels)
    soft = rules.divergence(teacher.logits, student.logits, constants["temperature"])
    ours = F.normalize(learnt["student"](token_mean(student.states, student.mask)), dim=-1)
    theirs = F.normalize(learnt["teacher"](token_mean(teacher.states, teacher.mask)), dim=-1)
    layers = (ours - theirs).square().sum(-1).mean(1).sum()
    loss = constants["ce"] * ce + constants["soft"] * soft + constants["layers"] * layers
    return {"loss": loss, "ce": ce, "soft": soft, "layers": layers}


def mutual(student, teacher, labels, rules, constants, done):
    """CE(S(x), y) + KL(p_T || p_S), the student's loss in Zhang et al. 2018 and Shi et al. 2021, where the
    teacher learns too."""
    ce = rules.loss(student.logits, labels)
    soft = rules.divergence(teacher.logits, student.logits, constants["temperature"])
    return {"loss": ce + soft, "ce": ce, "soft": soft}


def mutual_of_teacher(student, teacher, labels, rules, constants):
    """CE(T(x), y) + KL(p_S || p_T), the teacher's loss in Zhang et al. 2018. -> scalar."""
    return rules.loss(teacher.logits, labels) + rules.divergence(student.logits, teacher.logits,
                                                                 constants["temperature"])


def prokt_of_teacher(student, teacher, labels, rules, constants):
    """0.6 CE(T(x), y) + 0.4 KL(p_S || p_T): the teacher does not go where the student cannot follow (Shi et
    al. 2021). -> scalar."""
    soft = rules.divergence(student.logits, teacher.logits, constants["temperature"])
    return constants["ce"] * rules.loss(teacher.logits, labels) + constants["soft"] * soft


def patient_kd(student, teacher, labels, rules, constants, done):
    """MPDistil's phase 2: a soft + (1 - a) CE + b pkd, which is MetaDistil's loss of the student (Zhou et al.
    2022)."""
    ce = rules.loss(student.logits, labels)
    soft = rules.soft_loss(teacher.logits, student.logits, constants["temperature"])
    pkd = pkd_loss(student.states, teacher.states)
    loss = distillation_loss(soft, ce, pkd, constants["alpha"], constants["beta"])
    return {"loss": loss, "ce": ce, "soft": soft, "pkd": pkd}


def tinybert(student, teacher, labels, rules, constants, done, learnt):
    """In the first part of the training the sum over layers of MSE(A_S, A_T), attention scores, and MSE(W
    H_S, H_T), states of all tokens, embeddings included, each a mean over real places; then KL(p_T || p_S) at
    temperature 1 (Jiao et al. 2020). learnt: W, linear."""
    if done >= constants["share"]:
        soft = rules.divergence(teacher.logits, student.logits, 1.0)
        zero = torch.zeros_like(soft)
        return {"loss": soft, "soft": soft, "attention": zero, "hidden": zero}
    tokens = student.mask[:, :, None]                                  # (rows, tokens, 1)
    places = student.mask[:, None, :, None] * student.mask[:, None, None, :]
    attention = sum(masked_mean((ours - theirs).square(), places)
                    for ours, theirs in zip(student.scores, teacher.scores, strict=True))
    hidden = sum(masked_mean((learnt["student"](ours) - theirs).square(), tokens)
                 for ours, theirs in zip(student.states, teacher.states, strict=True))
    return {"loss": attention + hidden, "soft": torch.zeros_like(hidden), "attention": attention,
            "hidden": hidden}


def relation_divergence(teacher_scores, student_scores, mask):
    """KL(softmax of the teacher's scores || of the student's), over real keys, the mean over heads and real
    queries. Both: (rows, heads, tokens, tokens); mask: (rows, tokens)."""
    blocked = (mask[:, None, None, :] == 0)
    ours, theirs = (scores.masked_fill(blocked, torch.finfo(scores.dtype).min).log_softmax(-1)
                    for scores in (student_scores, teacher_scores))
    by_query = (theirs.exp() * (theirs - ours)).sum(-1)
    return masked_mean(by_query, mask[:, None, :])


def minilm(student, teacher, labels, rules, constants, done):
    """In the first part of the training, of the last layers, KL of the attention distributions and KL of the
    value relations softmax(V V' / sqrt(d)); then hinton_kd (Wang et al. 2020)."""
    if done >= constants["share"]:
        found = hinton_kd(student, teacher, labels, rules, constants, done)
        return {**found, "attention": torch.zeros_like(found["ce"]), "values": torch.zeros_like(found["ce"])}
    attention = relation_divergence(teacher.scores[-1], student.scores[-1], student.mask)
    relations = [side.values[-1] @ side.values[-1].transpose(-1, -2) / side.values.shape[-1] ** 0.5
                 for side in (teacher, student)]
    values = relation_divergence(*relations, student.mask)
    zero = torch.zeros_like(values)
    return {"loss": attention + values, "ce": zero, "soft": zero, "attention": attention, "values": values}


def of_labels(student, teacher, labels, rules, constants, done):
    """CE(S(x), y) alone (Xu et al. 2020, of the network in which layers are replaced)."""
    ce = rules.loss(student.logits, labels)
    return {"loss": ce, "ce": ce}


def replacing_rate(done, constants):
    """How likely a block is the student's: linear from `start` to 1 over the first `share` of the training
    (Xu et al. 2020, its curriculum), then 1."""
    return min(1.0, constants["start"] + (1 - constants["start"]) * done / constants["share"])


def block_ends(depth, nlayers):
    """The teacher's layers at which its blocks end, one block for each of the student's layers: 0, N/n, 2N/n,
    ... N, rounded down."""
    return [number * depth // nlayers for number in range(nlayers + 1)]


def mixed_layers(student_layers, teacher_layers, replaced):
    """The layers of a network of n blocks: of block l the student's layer l where replaced[l], else the
    teacher's that it stands for, N/n of them. -> list."""
    ends = block_ends(len(teacher_layers), len(student_layers))
    return [layer for number, own in enumerate(replaced) for layer in
            (student_layers[number:number + 1] if own else teacher_layers[ends[number]:ends[number + 1]])]


def virtual_step(loss, parameters, rate):
    """theta - rate * d loss / d theta, with its graph: {name: tensor} of parameters {name: tensor}. Those
    that the loss does not depend on stay as they are."""
    gradients = torch.autograd.grad(loss, parameters.values(), create_graph=True, allow_unused=True)
    return {name: value if gradient is None else value - rate * gradient
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True)}


# --- the table ----------------------------------------------------------------------------------------------

def skipped(depth, nlayers):
    """Student layers 1..n-1 against every (N/n)-th teacher layer."""
    return list(range(1, nlayers)), teacher_layers(depth, nlayers, "skip")


def last_ones(depth, nlayers):
    """Student layers 1..n-1 against teacher layers N-n+1..N-1."""
    return list(range(1, nlayers)), list(range(depth - nlayers + 1, depth))


def last_of_both(depth, nlayers):
    return [nlayers], [depth]


def to_be_drawn(depth, nlayers):
    """Student layers 1..n-1 against as many of the teacher's 1..N-1, which drawn_layers draws: all those."""
    return list(range(1, nlayers)), list(range(1, depth))


def drawn_layers(count, of, seed, epoch):
    """`count` of so many places, in order, by the seed and the epoch alone. -> list of places from 0."""
    random = torch.randperm(of, generator=seeded_generator(seed, "rail_kd", "layers", epoch))
    return sorted(random[:count].tolist())


def projections(hidden, constants, seed):
    """P and Q: Linear(hidden, width) each."""
    found = torch.nn.ModuleDict()
    for side in ("student", "teacher"):
        found[side] = torch.nn.Linear(hidden, constants["width"])
        init_linear(found[side], seeded_generator(seed, "rail_kd", side))
    return found


def embeddings_and_skipped(depth, nlayers):
    """The embeddings, and every layer of the student against every (N/n)-th of the teacher."""
    return list(range(nlayers + 1)), block_ends(depth, nlayers)


def one_projection(hidden, constants, seed):
    """W: Linear(hidden, hidden)."""
    found = torch.nn.Linear(hidden, hidden)
    init_linear(found, seeded_generator(seed, "tinybert"))
    return torch.nn.ModuleDict({"student": found})


def all_of_both(depth, nlayers):
    return list(range(1, nlayers + 1)), list(range(1, depth + 1))


METHODS = {  # their constants: arguments.BASELINES
    "hinton_kd": Baseline("Hinton, Vinyals and Dean 2015, arXiv:1503.02531", hinton_kd),
    "pkd_skip": Baseline("Sun et al. 2019, arXiv:1908.09355", pkd, skipped),
    "pkd_last": Baseline("Sun et al. 2019, arXiv:1908.09355", pkd, last_ones),
    "alp_kd": Baseline("Passban et al. 2021, arXiv:2012.14022", alp_kd, all_of_both),
    "annealing_kd": Baseline("Jafari et al. 2021, arXiv:2104.07163", annealing_kd),
    "continuation_kd": Baseline('Jafari et al. 2022, "Continuation KD"', continuation_kd),
    "takd": Baseline("Mirzadeh et al. 2020, arXiv:1902.03393", hinton_kd, assistant=True),
    "distilbert": Baseline("Sanh et al. 2019, arXiv:1910.01108", distilbert, last_of_both, tokens=True),
    "rail_kd": Baseline('Haidar et al. 2022, "RAIL-KD"', rail_kd, to_be_drawn, tokens=True,
                        learnt=projections),
    "dml": Baseline("Zhang et al. 2018, arXiv:1706.00384", mutual, teacher_loss=mutual_of_teacher),
    "prokt": Baseline("Shi et al. 2021, arXiv:2107.09305", mutual, teacher_loss=prokt_of_teacher),
    "tinybert": Baseline("Jiao et al. 2020, arXiv:1909.10351", tinybert, embeddings_and_skipped, tokens=True,
                         attention=True, learnt=one_projection),
    "minilm": Baseline("Wang et al. 2020, arXiv:2002.10957", minilm, last_of_both, tokens=True,
                       attention=True),
    "metadistil": Baseline("Zhou, Xu and McAuley 2022, arXiv:2106.04570", patient_kd, skipped,
                           from_quiz=True),
    "theseus": Baseline("Xu et al. 2020, arXiv:2002.02925", of_labels, replaces=True),
}


def check_encoders(methods, configs):
    """InputError unless the encoders have what the methods read. configs: {flag: configuration}."""
    for method in methods:
        for flag, config in configs.items():
            if METHODS[method].replaces and flag == "--student_model":
                continue  # it reads none
            if METHODS[method].attention and config.model_type not in ATTENTION:
                raise InputError(f"--baselines {method}: it reads attention scores, and those of {flag}'s"
                                 f" {config.model_type} are not q k / sqrt(d) alone; expected one of"
                                 f" {', '.join(ATTENTION)}, or leave the method out")
            if METHODS[method].replaces and config.model_type not in STACKED:
                raise InputError(f"--baselines {method}: it runs layers of teacher and student in one"
                                 f" network, and those of {flag}'s {config.model_type} are not simply called"
                                 f" one after the other; expected one of {', '.join(STACKED)}, or leave the"
                                 " method out")
        heads = {config.num_attention_heads for config in configs.values() if METHODS[method].attention}
        if len(heads) > 1:
            raise InputError(f"--baselines {method}: encoders with {' and '.join(map(str, sorted(heads)))}"
                             " attention heads found, expected as many in both; or leave the method out")


class WithLearnt(torch.nn.Module):
    """A student, and what is learnt beside it; its heads are the student's (models.set_training)."""

    def __init__(self, student, learnt):
        super().__init__()
        self.student, self.learnt = student, learnt

    @property
    def heads(self):
        return self.student.heads


# --- the loop -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class BaselineTraining(Training):
    """Settings of a method's training. layers: (the student's, the teacher's) whose states it reads;
    teacher_learning_rate: of a teacher that learns too, else 0."""
    method: str
    nlayers: int
    constants: dict
    layers: list
    teacher_learning_rate: float


def learn_together(phase, student, teacher, train, settings, evaluator, streams, log, saver=None):
    """Train a student on train together with its teacher, a Model that was fine-tuned: at each step first the
    teacher learns from the student as it is, then the student from the teacher that has just learnt (the
    order of Shi et al. 2021; for Zhang et al. 2018, whose two networks take turns too, either may be first).
    Other arguments as in distill_by. Leaves the best epoch's weights in student. Returns the Best."""
    task, device, rules = train.task.name, torch.device(settings.device), train.task.rules
    method, constants = METHODS[settings.method], settings.constants
    learner = Trained(teacher, make_optimizer(teacher, settings.teacher_learning_rate, settings))

    def answers(model, batch):
        logits, pooled = model(task, batch)
        return Answers(logits, pooled.new_zeros(0, *pooled.shape))

    def step(indices, done):
        batch = train.batch(indices, device)
        set_training(teacher, settings.dropout, evaluated=True)  # it was, in phase 1
        with torch.no_grad():
            ours = answers(student, batch)
        teacher_loss = method.teacher_loss(ours, answers(teacher, batch), batch.labels, rules, constants)
        backward(teacher_loss, teacher, settings.max_grad_norm)
        apply_gradients(learner.optimizer, settings)
        with torch.no_grad():  # what the student learns from has no dropout, as in all other rows
            theirs = answers(teacher.eval(), batch)
        figures = method.loss(answers(student, batch), theirs, batch.labels, rules, constants, done)
        return {**figures, "teacher_loss": teacher_loss.detach(),
                "gradient_norm": backward(figures["loss"], student, settings.max_grad_norm)}

    loop = EpochLoop(phase, student, train, step, settings, evaluator, streams, log,
                     beside={"teacher": learner})
    return run_epochs(loop, saver=saver)[0]


@dataclass
class QuizPasses:
    """Batches of quiz, a new pass in random order when one is used up. left: of the pass under way, the next
    one last."""
    size: int
    batch_size: int
    streams: object
    left: list = field(default_factory=list)

    def next(self):
        self.left = self.left or self.streams.batches(self.size, self.batch_size, "quiz")[::-1]
        return self.left.pop()

    def state_dict(self):
        return {"left": self.left}

    def load_state_dict(self, state):
        self.left = state["left"]


def quiz_loss(student, teacher, task, batch, quiz_batch, rules, settings):
    """CE on a quiz batch of the student after a virtual step on a train batch, as a function of the teacher
    (Zhou et al. 2022): how good a teacher it is. -> scalar with a graph through the step."""
    method, (ours, theirs) = METHODS[settings.method], settings.layers

    loss = method.loss(cls_answers(student, task, batch, ours), cls_answers(teacher, task, batch, theirs),
                       batch.labels, rules, settings.constants, 0.0)["loss"]
    virtual = virtual_step(loss, dict(student.named_parameters()), settings.learning_rate)
    logits, _ = torch.func.functional_call(student, virtual, (task, quiz_batch))
    return rules.loss(logits, quiz_batch.labels)


def learn_to_teach(phase, student, teacher, train, quiz, settings, evaluator, streams, log, saver=None):
    """MetaDistil: at each step the teacher, a Model that was fine-tuned, learns from quiz_loss; then the
    student learns from the teacher on the same train batch. Other arguments as in distill_by. Leaves the best
    epoch's weights in student. Returns the Best."""
    task, device, rules = train.task.name, torch.device(settings.device), train.task.rules
    method, (ours, theirs) = METHODS[settings.method], settings.layers
    learner = Trained(teacher, make_optimizer(teacher, settings.teacher_learning_rate, settings))
    passes = QuizPasses(len(quiz), settings.batch_size, streams)

    def step(indices, done):
        batch, quiz_batch = train.batch(indices, device), quiz.batch(passes.next(), device)
        set_training(teacher, settings.dropout, evaluated=True)  # it was, in phase 1
        # the fused kernels of attention have no second derivative
        with sdpa_kernel(SDPBackend.MATH):
            loss = quiz_loss(student, teacher, task, batch, quiz_batch, rules, settings)
            weights = [weight for weight in teacher.parameters() if weight.requires_grad]
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True)):
                weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        apply_gradients(learner.optimizer, settings)

        with torch.no_grad():  # without dropout, as in all other rows
            there = cls_answers(teacher.eval(), task, batch, theirs)
        figures = method.loss(cls_answers(student, task, batch, ours), there, batch.labels, rules,
                              settings.constants, done)
        return {**figures, "quiz_loss": loss.detach(),
                "gradient_norm": backward(figures["loss"], student, settings.max_grad_norm)}

    loop = EpochLoop(phase, student, train, step, settings, evaluator, streams, log,
                     beside={"teacher": learner, "quiz": passes})
    return run_epochs(loop, saver=saver)[0]


def replace_layers(phase, student, teacher, train, settings, evaluator, streams, log, saver=None):
    """BERT-of-Theseus: at each step a network of n blocks is drawn, each the student's layer or the layers of
    the frozen teacher, a Model, that it stands for, and the student's layers in it learn from its CE. Student
    and teacher share embeddings, pooler and heads, which rest until all blocks are the student's; then the
    student learns alone. Other arguments as in distill_by. Leaves the best epoch's weights in student.
    Returns the Best."""
    task, device, rules = train.task.name, torch.device(settings.device), train.task.rules
    method, constants = METHODS[settings.method], settings.constants
    own, theirs = list(stack_of(student.encoder)), list(stack_of(teacher.encoder))
    layered = {id(weight) for layer in own for weight in layer.parameters()}
    shared = [weight for weight in student.parameters() if id(weight) not in layered]
    teacher.requires_grad_(False)

    def step(indices, done):
        rate, batch = replacing_rate(done, constants), train.batch(indices, device)
        drawn = torch.rand(len(own), generator=streams.generator("replaced"))
        replaced = [bool(value < rate) for value in drawn]
        for weight in shared:
            weight.requires_grad_(rate == 1)
        for layer in theirs:
            layer.train(student.encoder.training)
        with with_layers(student.encoder, mixed_layers(own, theirs, replaced)):
            logits, _ = student(task, batch)
        answers = Answers(logits, logits.new_zeros(0))
        figures = method.loss(answers, None, batch.labels, rules, constants, done)
        # a network of the teacher's layers alone teaches nobody
        norm = (backward(figures["loss"], student, settings.max_grad_norm)
                if figures["loss"].requires_grad else torch.zeros_like(figures["loss"]))
        share = logits.new_full((), sum(replaced) / len(replaced))
        return {**figures, "replaced": share, "gradient_norm": norm}

    loop = EpochLoop(phase, student, train, step, settings, evaluator, streams, log)
    best = run_epochs(loop, saver=saver)[0]
    student.requires_grad_(True)
    return best


def distill_by(phase, student, teacher_heads, teacher_outputs, train, settings, evaluator, streams, log,
               saver=None):
    """Train a student on train by a method; arguments as in meta_policy.distill_student, but that
    teacher_outputs is the teacher's encoder for a method that reads all tokens. Leaves the best epoch's
    weights in student. Returns the Best."""
    task, device, rules = train.task.name, torch.device(settings.device), train.task.rules
    method, (ours, theirs) = METHODS[settings.method], settings.layers
    module, more = student, {}
    if method.learnt:
        with torch.random.fork_rng(devices=[]):
            learnt = method.learnt(student.state_predictor.in_features, settings.constants, settings.seed)
        more = {"learnt": learnt.to(device)}
        module = WithLearnt(student, learnt)

    def step(indices, done):
        batch, layers = train.batch(indices, device), theirs
        if len(ours) < len(layers) and method.tokens:  # this epoch's
            epoch = int(done * settings.epochs + 1e-9)
            layers = [layers[place] for place in drawn_layers(len(ours), len(layers), settings.seed, epoch)]
        with torch.no_grad():
            if method.tokens:
                there = all_answers(teacher_outputs.eval(), teacher_heads.eval(), task, batch, layers,
                                    method.attention)
            else:
                pooled, states = teacher_outputs.outputs(train, indices, layers=max(layers, default=0))
                there = Answers(teacher_heads.eval()(task, pooled), of_layers(states, layers))
        if method.tokens:
            here = all_answers(student.encoder, student.heads, task, batch, ours, method.attention)
        else:
            here = cls_answers(student, task, batch, ours)
        figures = method.loss(here, there, batch.labels, rules, settings.constants, done, **more)
        return {**figures, "gradient_norm": backward(figures["loss"], module, settings.max_grad_norm)}

    loop = EpochLoop(phase, module, train, step, settings, evaluator, streams, log)
    return run_epochs(loop, saver=saver)[0]


def cls_answers(model, task, batch, layers):
    """Answers of a Model with the [CLS] states of some layers, counted from 1."""
    pooled, states = model.encoder(batch, layers=bool(layers))
    return Answers(model.heads(task, pooled), of_layers(states, layers) if layers
                   else pooled.new_zeros(0, *pooled.shape))


def all_answers(encoder, heads, task, batch, layers, attention):
    """Answers with the states of all tokens of some layers, 0 being the embeddings; attention: and with the
    scores and values in these layers."""
    with watched_attention(encoder) if attention else nullcontext() as seen:
        pooled, states = encoder.run(batch, layers=True)
    states = torch.stack([states[layer] for layer in layers]) if layers else pooled.new_zeros(
        0, *batch.attention_mask.shape, pooled.shape[-1])
    more = {}
    if attention:
        query, key, values = (torch.stack([seen[part][layer - 1] for layer in layers if layer])
                              for part in ("query", "key", "value"))
        more = {"scores": query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, "values": values}
    return Answers(heads(task, pooled), states, batch.attention_mask, **more)
