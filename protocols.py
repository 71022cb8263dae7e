"""The protocols: which choices the run makes where the paper's description and the authors' released code differ.

A protocol is a Protocol: one field per row of docs/PROTOCOLS.md's table that matters in code. `paper` is the
default of every field, `released` its other value. --protocol picks one, --set NAME=VALUE overrides single choices.
"""
from dataclasses import dataclass, field, fields, replace

from data_utils import InputError


def choice(paper, released, row):
    """A field with two values; row: METHOD.md's number of the difference."""
    return field(default=paper, metadata={"values": (paper, released), "row": row})


@dataclass(frozen=True)
class Protocol:
    """A named choice per difference, and behind it where it is read."""
    copa_input: str = choice("both_choices", "first_choice", 1)                     # data_utils.protocol_task
    wic_input: str = choice("both_sentences", "first_sentence", 2)                  # data_utils.protocol_task
    wsc_input: str = choice("marked", "span_index", 3)                              # data_utils.protocol_task
    cls_segment: str = choice("tokenizer", "one", 4)                                # data_utils.encode_split
    text_case: str = choice("as_is", "lower", 5)                                    # data_utils.build_examples
    padding: str = choice("longest", "max_length", 6)                               # data_utils.encode_split
    dropout: str = choice("training", "until_first_evaluation", 8)                  # models.set_training
    weight_decay_on: str = choice("matrices", "everything", 9)                      # meta_policy.make_optimizer
    phase_order: str = choice("sequential", "alternating", 11)                      # main_superglue.Pair
    student_update: str = choice("each_step", "each_episode", 12)                   # curriculum.Curriculum
    reward_weights: str = choice("after_update", "before_episode", 13)              # curriculum.Curriculum
    state_gradient: str = choice("detached", "attached", 14)                        # curriculum.Curriculum
    credit: str = choice("same_step", "next_step", 15)                              # curriculum.Curriculum
    discount_from: str = choice("each_step", "episode_start", 16)                   # curriculum.advantages_of
    quiz_batches: str = choice("redrawn", "fixed", 17)                              # curriculum.QuizBatches
    selection: str = choice("main_metric", "f1_or_accuracy", 18)                    # meta_policy.Selection, metrics.Best
    data_order: str = choice("own_generators", "global_generator", 19)              # data_utils.Draws
    zero_grad: str = choice("none", "zeros", 20)                                    # meta_policy.apply_gradients
    reward_precision: str = choice("own", "float32", 21)                            # curriculum.REWARDS


PROTOCOLS = {"paper": Protocol(), "released": Protocol(**{f.name: f.metadata["values"][1] for f in fields(Protocol)})}


def resolve_protocol(args):
    """The Protocol of --protocol with the NAME=VALUE overrides of --set. InputError where other flags contradict it."""
    values = {f.name: f.metadata["values"] for f in fields(Protocol)}
    changes = {}
    for text in args.set:
        key, _, value = text.partition("=")
        if key not in values:
            raise InputError(f"--set {text}: {key!r} found, expected NAME=VALUE with NAME one of {', '.join(values)}")
        if value not in values[key]:
            raise InputError(f"--set {text}: {value!r} found, expected {key}={values[key][0]} (paper) or {key}={values[key][1]} (released)")
        changes[key] = value
    protocol = replace(PROTOCOLS[args.protocol], **changes)
    if protocol.phase_order == "alternating" and args.meta_epochs != args.epochs:
        raise InputError(f"--meta_epochs {args.meta_epochs}, --epochs {args.epochs}: with phase_order=alternating (--protocol released) "
                         "phases 2 and 3 take turns, so both need the same number; give both flags the same value")
    return protocol
