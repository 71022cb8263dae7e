"""Whether an encoder and its tokenizer do what the method takes for granted, tried on two short texts before
anything is computed. Whatever is not so raises InputError, one line with the reason.

Nothing is asked by the name of a family: each assumption is tried on the encoder itself, through the code
that trains it.
"""
import inspect
import math
import re
from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn

from bookkeeping.errors import InputError, one_line
from data_utils import Example, encode_split
from models import FamilyPooler, Pooler, has_pooler, own_dense
from tasks import TASKS

EXAMPLE = ("The street is wet", "It has rained")
# largest difference, relative to the largest entry, of what is equal up to rounding: float32 gives 1e-6, and
# padding that leaks 1e-3
TOLERANCE = 1e-4
NO_LIMIT = 10 ** 9  # tokenizers that know no longest input write a number above this


# --- the tokenizer ------------------------------------------------------------------------------------------

def read_example(tokenizer, where):
    """How the tokenizer reads EXAMPLE: its tokens. InputError unless it is one special token, a text, one or
    two separators, a text and one separator."""
    try:
        encoded = tokenizer(*EXAMPLE, return_special_tokens_mask=True)
        ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
        tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]
    except Exception as error:  # without its vocabulary, or one that wants more than two texts
        raise InputError(f"{where}: its tokenizer cannot read two texts ({one_line(error)}); a file of it "
                         "may be missing or damaged") from None
    first = {tokenizer.cls_token_id, tokenizer.bos_token_id} - {None}
    separators = {tokenizer.sep_token_id, tokenizer.eos_token_id} - {None}
    special = [bool(flag) and number != tokenizer.unk_token_id for flag, number in zip(mask, ids)]
    signs = "".join("S" if flag else "t" for flag in special)
    if all(number == tokenizer.unk_token_id for number, sign in zip(ids, signs) if sign == "t"):
        raise InputError(f"{where}: its tokenizer knows no word of {' '.join(EXAMPLE)!r}; expected the "
                         "vocabulary that came with the encoder: a file of it is missing or damaged")
    right = re.fullmatch("St+SS?t+S", signs) and (not first or ids[0] in first)
    if right:
        after = [number for number, flag in zip(ids[1:], special[1:]) if flag]
        right = (not separators or separators >= set(after)) and (ids[0] not in after or ids[0] in separators)
    if not right:
        reads = f"its tokenizer reads {EXAMPLE[0]!r}, {EXAMPLE[1]!r} as {' '.join(tokens)} (ids {ids})"
        if signs.startswith("t") and ids and ids[-1] == tokenizer.cls_token_id:
            raise InputError(f"{where}: its summary token {tokens[-1]} is last, and the first token is read "
                             f"here: {reads}; choose an encoder whose summary token is first")
        raise InputError(f"{where}: {reads}; expected one special token, the first text, a separator, the "
                         "second text, a separator, as in [CLS] a [SEP] b [SEP]: mend its tokenizer files, or"
                         " choose another encoder")
    return " ".join(tokens)


def known_limit(tokenizer, config):
    """The longest row that the files name, in tokens, or None. Numbers that stand for "none" (-1, 1e30) are
    left out. Families count differently (RoBERTa's positions begin behind the padding's): that is tried."""
    named = (tokenizer.model_max_length, getattr(config, "max_position_embeddings", None))
    return min((int(number) for number in named if number and 0 < number < NO_LIMIT), default=None)


# --- the encoder --------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Probe:
    """An encoder under probe. where: flag and folder, as errors name them; layers: how many it should have;
    split: two rows, EXAMPLE and one as long as the run may have them, encoded and padded as the run does."""
    encoder: nn.Module
    where: str
    layers: int
    tokenizer: object
    split: object

    def refuse(self, reason):
        raise InputError(f"{self.where}: {reason}")

    @torch.no_grad()
    def attempt(self, batch):
        """(pooled (rows, hidden), states: (rows, tokens, hidden) of embeddings and each layer)."""
        seen = []
        hook = self.encoder.body.register_forward_hook(lambda module, given, out: seen.append(out))
        try:
            pooled = self.encoder(batch, layers=True)[0]
        finally:
            hook.remove()
        return pooled, list(seen[0].hidden_states)

    def run(self, batch):
        """attempt; InputError with what the encoder raised."""
        try:
            return self.attempt(batch)
        except Exception as error:  # an index, a shape, a missing input: each family has its own
            self.refuse(f"a pass through {type(self.encoder.body).__name__} fails ({one_line(error)}); "
                        "choose another encoder")

    def runs(self, batch):
        try:
            self.run(batch)
            return True
        except InputError:
            return False


def probe_encoder(encoder, tokenizer, max_seq_length, where, layers, encoding):
    """(facts of an encoder, as result.json has them; its states on the probe's rows). InputError if it cannot
    be used. encoding: cls_segment and padding, as the run encodes. segments: whether the tokenizer tells both
    texts apart, None where the encoder does not."""
    encoder.eval()
    longest = min(max_seq_length, known_limit(tokenizer, encoder.body.config) or max_seq_length)
    probe = Probe(encoder, where, layers, tokenizer, probe_split(tokenizer, longest, encoding))
    both, short, long = (probe.split.batch(rows) for rows in ([0, 1], [0], [1]))
    pooled, states = layer_states(probe, both, *first_pass(probe, both, longest, max_seq_length))
    pools_with_its_own(probe, short)
    pooled_short = answers_alike(probe, both, short, pooled, states)
    sees_last_token(probe, short, pooled_short)
    sees_last_token(probe, long, pooled[1:])
    types = probe.split.token_type_ids
    segments = bool(types is not None and types[probe.split.offsets[1] - 1]) if encoder.takes_types else None
    return {"model": type(encoder.body).__name__, "layers": layers, "segments": segments}, states


def probe_split(tokenizer, length, encoding):
    """The Split of Probe, whose second row has `length` tokens."""
    pairs = EXAMPLE, tuple(" ".join([text] * length) for text in EXAMPLE)
    examples = [Example(number, [pair], 0, "probe", Counter()) for number, pair in enumerate(pairs)]
    return encode_split(TASKS["RTE"], "probe", examples, tokenizer, length, **encoding)


def first_tokens(batch, length):
    """The batch cut to its first `length` tokens."""
    return replace(batch, **{name: None if values is None else values[:, :length]
                             for name, values in vars(batch).items() if name != "labels"})


def first_pass(probe, both, longest, max_seq_length):
    """What rows of --max_seq_length tokens give. Where they do not run, or `longest`, the length of the rows,
    is less, the error names the longest that run."""
    try:
        found = probe.run(both)
    except InputError:
        low, high = 0, longest  # low runs (0: none found yet), high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if probe.runs(first_tokens(both, middle)) else (low, middle)
        if low < 4:  # no matter of length
            raise
        longest = low
    if longest < max_seq_length:
        raise InputError(f"--max_seq_length {max_seq_length}: {probe.where.partition(' ')[2]} takes at most "
                         f"{longest} tokens; lower it")
    return found


def layer_states(probe, both, pooled, states):
    """(pooled (rows, hidden), [(tokens that are no padding, hidden)] of the embeddings and each layer): one
    state of each token from each, all finite."""
    found, wanted = [tuple(state.shape) for state in states], (*both.input_ids.shape, pooled.shape[1])
    fit = [shape[::2] == wanted[::2] and shape[1] >= wanted[1] for shape in found]  # BigBird pads more
    if len(found) != probe.layers + 1 or not all(fit):
        shapes = " and ".join(map(str, dict.fromkeys(found)))
        probe.refuse(f"{len(found)} hidden states of shape {shapes} found, expected {probe.layers + 1} of "
                     f"{wanted}, of the embeddings and each of {probe.layers} layers: the method matches "
                     "layer with layer; choose another encoder")
    states = real_tokens(both, states)
    if not all(torch.isfinite(values).all() for values in (pooled, *states)):
        probe.refuse("what it computes is not finite (NaN or infinity); its weights are damaged")
    return pooled, states


def real_tokens(batch, states):
    """[(rows, tokens, hidden)] -> [(tokens that are no padding, hidden)], row after row."""
    mask = batch.attention_mask.bool()
    return [state[:, :mask.shape[1]][mask] for state in states]


def pools_with_its_own(probe, batch):
    """Its own pooled output, where that is read, comes from the dense layer found; where it is not, no
    weights are lost with it."""
    body, called = probe.encoder.body, []
    if probe.encoder.pooler is None:
        hook = own_dense(body).register_forward_hook(lambda *_: called.append(True))
        probe.run(batch)
        hook.remove()
        if not called:
            probe.refuse("its pooled output does not come from the dense layer of its pooler, which the "
                         "curriculum's state is read from; choose another encoder")
    elif isinstance(probe.encoder.pooler, Pooler) and list(
            (getattr(body, "pooler", None) or nn.Identity()).parameters()):
        probe.refuse(f"its {type(body.pooler).__name__} has no dense layer (hidden, hidden), which the "
                     "curriculum's state is read from; choose another encoder")


def difference(one, other, least=1e-12):
    """The largest difference of two tensors, relative to the largest entry of the first, or to `least` where
    that is larger; NaN is infinite."""
    off = (one - other).abs().max() / one.abs().max().clamp_min(least)
    return off.nan_to_num(math.inf).item()


def answers_alike(probe, both, short, pooled, states):
    """A row gives the same alone as padded beside a longer one, and the same again. Returns its pooled output
    alone."""
    length = int(short.attention_mask.sum())
    alone, again = ((found, *real_tokens(short, layers)) for found, layers in map(probe.run, (short, short)))
    padded = max(map(difference, (pooled[:1], *(state[:length] for state in states)), alone))
    if padded > TOLERANCE:
        body = probe.encoder.body
        why = "" if "attention_mask" in inspect.signature(body.forward).parameters else (
            f" ({type(body).__name__} takes no attention mask)")
        way_out = ("set attention_type to original_full in its config.json"
                   if getattr(body.config, "attention_type", None) == "block_sparse"
                   else "--set padding=max_length pads every row alike")
        probe.refuse(f"padding changes what it computes{why}: a row of {length} tokens alone, and beside one "
                     f"of {both.input_ids.shape[1]}, differs by {padded:.0e} of the largest state, so that a "
                     f"row's result depends on its neighbours; {way_out}")
    off = max(map(difference, alone, again))
    if off > TOLERANCE:
        probe.refuse(f"the same row, given twice, differs by {off:.0e} of the largest state: what it "
                     "computes depends on chance, or on what it computed before; choose another encoder")
    return alone[0]


def sees_last_token(probe, batch, pooled):
    """Another last token of the text gives another pooled output. batch: one row; pooled: (1, hidden)."""
    config = probe.encoder.body.config
    special = {*probe.tokenizer.all_special_ids, config.pad_token_id} - {probe.tokenizer.unk_token_id}
    ids = batch.input_ids.clone()
    place = max(place for place, number in enumerate(ids[0].tolist()) if number not in special)
    ids[0, place] = next(number for number in (*ids[0].tolist(), *range(len(probe.tokenizer)))
                         if number not in special and number != ids[0, place])
    changed = probe.run(replace(batch, input_ids=ids))[0]
    if difference(pooled, changed) <= 1e-6 and not reaches(probe, batch, place):
        hint = ("is_decoder is true in its config.json" if getattr(config, "is_decoder", False) else
                "a model that reads from left to right, or through windows, cannot be used")
        probe.refuse(f"its first token does not see the last one: the pooled output of {place + 2} tokens is "
                     f"the same with another last token of the text ({hint}); expected an encoder whose first"
                     " token sees the whole row")


def reaches(probe, batch, place):
    """Whether the pooled output of a row has a gradient at the embedding of a token. It is exact where the
    difference that a token makes drowns in rounding."""
    caught = []
    try:
        hook = probe.encoder.body.get_input_embeddings().register_forward_hook(
            lambda module, given, out: caught.append(out))
        pooled = probe.encoder(batch)[0]
        hook.remove()
        weighted = (pooled * torch.linspace(-1, 1, pooled.shape[1])).sum()
        (gradient,) = torch.autograd.grad(weighted, caught[:1], allow_unused=True)
    except (RuntimeError, ValueError, NotImplementedError):  # no embeddings to ask, or no gradient
        return False
    return gradient is not None and bool(gradient[0, place].any())


# --- the student --------------------------------------------------------------------------------------------

def same_layers(encoder, states, whole, where):
    """What stands between the cut encoder's last layer and its last state: the name of a norm, or None.
    InputError unless its states on the probe's rows are those of the whole encoder's first layers, the last
    one perhaps behind that norm."""
    count = len(states) - 1
    for layer in range(count + 1):
        off = difference(whole[layer], states[layer])
        if off <= TOLERANCE:
            continue
        norm = norm_between(encoder.body, whole[layer], states[layer]) if layer == count else None
        if norm is None:
            what = f"layer {layer}" if layer else "the embeddings"
            raise InputError(f"{where}: cut to {count} of {len(whole) - 1} layers it is another encoder: "
                             f"{what} differs by {off:.0e} of the largest state from the whole one's, so the "
                             "layers depend on their number in its configuration; choose another encoder")
        return norm
    return None


def norm_between(body, before, after):
    """The name of a norm of the body that makes `after` of `before`, the outermost one; or None."""
    for name, module in sorted(body.named_modules(), key=lambda entry: entry[0].count(".")):
        if "norm" in type(module).__name__.lower():
            try:
                with torch.no_grad():
                    out = module(before)
            except Exception:  # a norm of another width, or of other arguments
                continue
            if torch.is_tensor(out) and out.shape == after.shape and difference(after, out) <= TOLERANCE:
                return name
    return None


def pooled_output(encoder, folder, unexpected):
    """What is read as the pooled output, in words. unexpected: names of weights in the checkpoint that are no
    part of the model."""
    if encoder.pooler is None:
        return "its own pooler"
    stored = has_pooler(folder)
    lost = [name for name in sorted(unexpected) if "pooler" in name and not stored]
    what = "that of its family's classifier" if isinstance(encoder.pooler, FamilyPooler) else (
        "without pooler: dense + tanh on the first token")
    own = own_dense(encoder.body)
    begun = "drawn at random" if own is None else "begun with its own pooler's dense layer"
    return (f"{what}, {'read from heads.safetensors' if stored else begun}"
            + (f"; the checkpoint's {', '.join(lost)}: no part of {type(encoder.body).__name__}, left out"
               if lost else ""))


def describe_probe(facts):
    """Lines that say what the probe found. facts: as result.json has them."""
    for side in ("teacher", "student"):
        found = facts[side]
        yield (f"{side}: {found['model']}, "
               + (f"first {found['layers']} of {found['cut_from']} layers, as in the checkpoint"
                  if "cut_from" in found else f"{found['layers']} layers")
               + (f", then {found['last_norm']}" if found.get("last_norm") else "")
               + f"; pooled output: {found['pooled']}")
    yield f"a pair reads {facts['example']}; {facts['tokens']} tokens run, and the first one sees the last"
    if facts["teacher"]["segments"] is False:
        yield "warning: the tokenizer gives no segments, by which the encoder tells the texts of a pair apart"
