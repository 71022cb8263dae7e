"""Random streams, reading, the split into train and quiz, encoding, batches.

The official training split is divided into train and quiz, dev is the official validation split, test is
unlabelled. MNLI has two of dev and of test, and may have the diagnostic set `ax`. Whatever cannot be read
raises InputError, which names file:line, what was found and expected.
"""
import csv
import glob
import hashlib
import io
import itertools
import json
import re
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from arguments import resolve_protocol, written
from bookkeeping.errors import InputError, one_line, shown
from bookkeeping.files import LFS_POINTER, check_object
from tasks import (
    BENCHMARKS,
    DESCRIPTION,
    TASKS,
    Task,
    descriptions,
    find_task,
    protocol_task,
    read_description,
    tasks_of,
)

# --- randomness ---------------------------------------------------------------------------------------------

def derive_seed(seed, *names):
    """A 63-bit seed from `seed` and names, the same on every machine; different names are independent
    streams."""
    return int.from_bytes(hashlib.sha256(repr((seed, *names)).encode()).digest()[:8], "big") >> 1


def seeded_generator(seed, *names):
    """A CPU generator of its own for what `names` says (a phase and a purpose), whatever ran before."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


def cut_order(order, batch_size):
    """Batches of an order, one after the other, the last one shorter."""
    return [order[start:start + batch_size] for start in range(0, len(order), batch_size)]


class RandomStreams:
    """Everything random that a phase's loop draws: batch orders and actions, from a generator per purpose
    that depends on nothing but the seed, the phase and the purpose; with data_order "global_generator" all
    from torch's global one, which dropout uses too (METHOD.md row 19)."""

    def __init__(self, seed, phase, data_order):
        self.seed, self.phase, self.data_order, self.generators = seed, phase, data_order, {}
        torch.manual_seed(derive_seed(seed, phase, "dropout"))

    def generator(self, *purpose):
        if self.data_order == "global_generator":
            return None
        if purpose not in self.generators:
            self.generators[purpose] = seeded_generator(self.seed, self.phase, *purpose)
        return self.generators[purpose]

    def state_dict(self):
        """torch's global generator is not among them."""
        return {json.dumps(purpose): generator.get_state() for purpose, generator in self.generators.items()}

    def load_state_dict(self, states):
        for purpose, state in states.items():
            self.generator(*json.loads(purpose)).set_state(state.cpu())

    def batches(self, size, batch_size, *purpose, count=None):
        """One pass over `size` examples in random order: a list of arrays of indices, the last one shorter.
        count: so many whole batches instead, from as many passes as that takes."""
        passes = 1 if count is None else -(-count * batch_size // size)
        order = np.concatenate([torch.randperm(size, generator=self.generator(*purpose)).numpy()
                                for _ in range(passes)])
        return cut_order(order if count is None else order[:count * batch_size], batch_size)

    def pick(self, count, *purpose):
        """A whole number below count, all equally likely."""
        return int(torch.randint(count, (1,), generator=self.generator(*purpose)))

    def action(self, probabilities):
        """An action drawn from probabilities: (actions)."""
        return int(torch.multinomial(probabilities.cpu(), 1, generator=self.generator("actions")))


# --- reading ------------------------------------------------------------------------------------------------

@dataclass
class Example:
    """One example: pairs (one a choice; the second text None where there is none), label (class number, or
    the number of a regression; None: not given), idx as in the data, where (file:line), and notes: what its
    builder and the reader counted."""
    idx: object
    pairs: list
    label: int | float | None
    where: str
    notes: Counter


def open_lines(path):
    """(number, line) of a UTF-8 text file, without line ends and byte-order mark. InputError at the first
    line that is not UTF-8, and where git left a pointer in the file's place."""
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: byte {error.start} is not UTF-8; convert the file to"
                             " UTF-8") from None
        if number == 1 and line.startswith(LFS_POINTER):
            raise InputError(f"{path}:1: a pointer of git lfs found, expected the file; run git lfs pull")
        yield number, line


def read_objects(path):
    """(where, record) of each line of a .jsonl file, as it stands there: nothing in it is opened."""
    for number, line in open_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line, object_pairs_hook=check_object)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg}, column {error.colno}); expected one object a"
                             " line") from None
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        except RecursionError:
            raise InputError(f"{where}: nested too deep; expected an object of a few levels") from None
        except ValueError:  # int's
            raise InputError(f"{where}: a number of more than {sys.get_int_max_str_digits()} digits found,"
                             " expected a shorter one, or text") from None
        if not isinstance(record, dict):
            raise InputError(f"{where}: {type(record).__name__} found, expected a JSON object")
        yield where, record


def read_jsonl(path, task):
    """(where, record) of each line of the official layout. The object that the task declares (`nested`) is
    opened where there is one, and no other; InputError where it holds a name that stands beside it too."""
    for where, record in read_objects(path):
        nested = task.layout.nested
        inner = record.pop(nested, None)
        if inner is not None and not isinstance(inner, dict):
            raise InputError(f"{where}: field {nested!r}: {shown(inner)} found, expected an object")
        both = sorted(record.keys() & (inner or {}).keys())
        if both:
            raise InputError(f"{where}: field {shown(both[0])} stands both in {nested!r} and beside it,"
                             " expected once; remove one of them")
        yield where, {**record, **(inner or {})}


def read_jsonl_layout(path, task):
    """read_jsonl, columns named as the task names them."""
    return rename(read_jsonl(path, task), task)


IDX_COLUMNS = ("idx", "id", "index")  # what a .tsv's column with idx may be called


def read_header(cells, task, where):
    """The names of a .tsv's columns as records have them: idx, the task's fields, label, in whatever order
    and case; others as they stand. InputError where idx or a field is missing, as in a file without a header,
    or a name stands twice."""
    known = {
        **{name: "idx" for name in IDX_COLUMNS},
        **{name.lower(): name for name in (*task.fields, "label")},
        **task.layout.columns,
    }
    names = [known.get(cell.strip().lower(), cell.strip()) for cell in cells]
    needed = (*["idx"] * (not task.layout.numbered), *task.fields)
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(
            f"{where}: columns {', '.join(map(shown, cells))} found, expected a header with"
            f" {', '.join(needed)} and, where there are labels, label, in any order; missing:"
            f" {', '.join(missing)}"
        )
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: column {shown(name)} stands twice, expected once; remove one of them")
    return names


def read_tsv(path, task):
    """(where, record) of each row of GLUE's and the released code's layout: a header, which says what the
    columns are, then a row a line. Quotes are literal; rows without the last column are unlabelled, if that
    is the label's. Record None: a broken line, where the task's layout lets it be left out."""
    names, layout, row = None, task.layout, 0
    for number, line in open_lines(path):
        if not line.strip():
            continue
        where, cells = f"{path}:{number}", line.split("\t")
        if names is None:
            if layout.headerless and len(cells) == len(layout.headerless):
                names = header = layout.headerless
            else:
                names, header = read_header(cells, task, where), cells
                continue
        row += 1
        unlabelled = (len(cells), names[-1]) == (len(names) - 1, "label")
        if layout.skips_broken and len(cells) != len(names) and "label" in names:
            yield where, None
            continue
        if len(cells) != len(names) and not unlabelled:
            raise InputError(
                f"{where}: {len(cells)} columns found, expected {len(names)}: {', '.join(header)}"
            )
        record = {name: cell for name, cell in zip(names, cells) if name not in layout.ignored}
        idx = record.setdefault("idx", row - 1)
        if isinstance(idx, str) and re.fullmatch(r"-?[0-9]{1,18}", idx):
            record["idx"] = int(idx)
        yield where, record


def read_described(path, task):
    """(where, record) of a file that a task.json names: .jsonl as SuperGLUE's, .csv with quotes, .tsv whose
    quotes are literal, .parquet. where: the line, if no text before it goes over several, or the row."""
    ending = path.suffix.removeprefix(".")
    if ending == "jsonl":  # not by `datasets`, which makes times of texts that look so
        yield from rename(read_objects(path), task)
        return
    from datasets import Dataset, Features, Value
    from datasets.utils.logging import disable_progress_bar, set_verbosity_error
    set_verbosity_error()
    disable_progress_bar()
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if ending == "tsv" else {"delimiter": ","}
    columns, filled = (None, True) if ending == "parquet" else check_columns(path, **form)
    if not filled:
        return
    with tempfile.TemporaryDirectory() as cache:  # of `datasets`, which would keep a copy of the file
        options = {"cache_dir": cache, "keep_in_memory": True}
        try:
            if columns is None:
                rows = Dataset.from_parquet(glob.escape(str(path)), **options)
            else:  # a text stays what it is: no number, date or gap is made of it
                texts = Features({name: Value("string") for name in columns})
                rows = Dataset.from_csv(glob.escape(str(path)), features=texts, names=columns, header=0,
                                        keep_default_na=False, encoding="utf-8-sig", **form, **options)
        # pandas and pyarrow say in many ways that a file is not what its name says
        except Exception as error:
            reason = one_line(error.__cause__ or error)
            raise InputError(f"{path}: no .{ending} that can be read ({reason}); expected"
                             f" {', '.join(task.fields)} and, where there are labels, the labels, in columns"
                             " with a header, in UTF-8") from None
    yield from rename(read_dataset(rows, task, path, first=1 if columns is None else 2), task)


def check_columns(path, **form):
    """(the names of a .csv's columns, whether there are rows). InputError where one stands twice, or the
    first row has another number of cells than the header, which pandas would make sense of in its own way."""
    text = "\n".join(line for _, line in open_lines(path))
    csv.field_size_limit(2 ** 31 - 1)
    found = (row for row in csv.reader(io.StringIO(text, newline=""), **form) if row)
    try:
        header, *rows = [*itertools.islice(found, 2)] or [[]]
    except csv.Error as error:
        raise InputError(f"{path}:1: its header or first row cannot be read ({error}); expected columns with"
                         " a header, and lines that end in a line feed") from None
    # pandas writes its index without a name
    header = [name or f"column {number}" for number, name in enumerate(header, 1)]
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{path}:1: column {shown(name)} stands twice, expected once; remove one of"
                             " them")
    if rows and len(rows[0]) != len(header):
        raise InputError(f"{path}:2: {len(rows[0])} columns found, expected {len(header)}:"
                         f" {', '.join(header)}")
    return header, bool(rows)


def rename(records, task):
    """Records whose columns bear the names that the task gives them; idx is the row's number, from 0, where
    the task has none."""
    for number, (where, record) in enumerate(records):
        for there, name in task.layout.columns.items():
            # what a description says wins; names of other layouts are for records that lack the field
            if there != name and there in record and (task.description or name not in record):
                record[name] = record.pop(there)
        if task.layout.numbered:
            record.setdefault("idx", number)
        yield where, record


NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{0,18})?([eE][-+]?[0-9]{1,2})?")


def parse_field(record, name, kind, where):
    """The value of a field as `kind`; numbers may come as text."""
    value = record.get(name)
    if value is None:
        raise InputError(f"{where}: field {name!r} missing or null, found {', '.join(map(shown, record))}")
    if kind is int and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value.strip()):
        value = int(value)
    if kind is float and not isinstance(value, bool) and NUMBER.fullmatch(str(value).strip()):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and abs(value) >= 2 ** 63):
        expected = {str: "text", int: "a whole number", float: "a number"}[kind]
        raise InputError(f"{where}: field {name!r}: {shown(value)} found, expected {expected}")
    return value


def parse_idx(record, where):
    """What names an example: a whole number or a text."""
    idx = record.get("idx")
    if not isinstance(idx, (int, str)) or isinstance(idx, bool) or not str(idx).strip():
        raise InputError(f"{where}: field 'idx': {shown(idx)} found, expected a whole number or text that"
                         " names the example")
    return idx


def parse_label(record, task, where):
    """The label of a record, None where it is not given."""
    try:
        return task.rules.labels.parse(record.get("label"), task)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


# What the log says of a split, by what is counted in an example's notes. Control characters, zero-width ones
# and marks of direction: most tokenizers drop them, so that a reader should know.
PATTERNS = {
    "invisible": re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060\ufeff]"),
    "empty": re.compile(r"\A\s*\Z"), "replaced": re.compile("\ufffd"),
    "quoted": re.compile(r'\A"([^"]|"")*""([^"]|"")*"\Z')
}
WARNINGS = {
    "empty": "have an empty text",
    "replaced": "have U+FFFD in a text, which stands for a character that somebody could not decode",
    "quoted": "have a text in quotes with doubled quotes in it, as spreadsheets write; all are read as text",
    "in_train": "have the texts of an example in train"
}
LEFT_OUT = {  # and of whole lines and examples
    "broken": "lines with another number of columns left out",
    "over_quiz_size": "examples left out (--quiz_size)", "over_max_train": "examples left out (--max_train)"
}
COUNTED = ("invisible", "unknown", *LEFT_OUT)  # what args and results say of a split
UNREAD = "unread "  # before the names of fields that nobody asked for


def unread_fields(notes):
    """Their names, for a message."""
    return ", ".join(shown(how.removeprefix(UNREAD)) for how in notes if how.startswith(UNREAD))


def build_examples(task, records, source, text_case="as_is"):
    """The Examples of a split: records checked and turned into texts, lower-cased where text_case is "lower"
    (METHOD.md row 5). Refuses duplicate idx, half-labelled and empty splits."""
    examples, places, asked, broken = [], {}, {*task.fields, "idx", "label"}, 0
    for where, record in records:
        if record is None:
            broken += 1
            continue
        values = {name: parse_field(record, name, kind, where) for name, kind in task.fields.items()}
        idx = parse_idx(record, where)
        if str(idx) in places:
            raise InputError(f"{where}: idx {shown(idx)} stands already at {places[str(idx)]}; every example"
                             " of a split needs its own")
        places[str(idx)] = where
        texts = [value for value in values.values() if isinstance(value, str)]
        notes = Counter(how for how, pattern in PATTERNS.items() if any(map(pattern.search, texts)))
        notes.update(f"{UNREAD}{name}" for name in record if name not in asked)
        try:
            pairs = task.build(values, notes)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if text_case == "lower":
            pairs = [tuple(text and text.lower() for text in pair) for pair in pairs]
        examples.append(Example(idx, pairs, parse_label(record, task, where), where, notes))
    if not examples:
        raise InputError(f"{source}: no examples found, expected at least one")
    if broken:
        examples[0].notes["broken"] = broken
    bare = [example for example in examples if example.label is None]
    if bare and len(bare) < len(examples):
        raise InputError(f"{bare[0].where}: no label, but {len(examples) - len(bare)} other examples of this"
                         " split have one; give all of them labels or none")
    return examples


def task_folder(data_dir, task):
    """The folder of `task` below data_dir, its name in any case; None where there is none."""
    folders = sorted(path for path in Path(data_dir).iterdir()
                     if path.is_dir() and path.name.lower() == task.name.lower())
    return next((path for path in folders if path.name == task.name), folders[0] if folders else None)


PARTS = ("train", "quiz", "dev", "dev_mismatched", "test", "test_mismatched", "ax")
LABELLED = ("dev", "dev_mismatched")  # those that must be there where they are asked for
LAYOUTS = (("jsonl", read_jsonl_layout, {"train": "train", "dev": "val", "test": "test"}),
           ("tsv", read_tsv, {"train": "train", "quiz": "held", "dev": "dev", "test": "test"}))


def files_of(task, folder):
    """(reader, {split: path}) of each layout that the task's files may have in its folder."""
    if task.layout.files:
        return [(read_described, {part: folder / file for part, file in task.layout.files.items()})]
    found = []
    for ending, read, stems in LAYOUTS:
        paths = {part: folder / f"{stem}.{ending}" for part, stem in stems.items()}
        if task.layout.mismatched:
            for part in ("dev", "test"):
                paths[part] = folder / f"{stems[part]}_matched.{ending}"
                paths[f"{part}_mismatched"] = folder / f"{stems[part]}_mismatched.{ending}"
        found.append((read, paths))
    return found


def has_training_file(data_dir, task):
    """Whether data_dir has something of `task` to learn from, in any layout."""
    folder = task_folder(data_dir, task)
    return folder is not None and any(paths["train"].is_file() for _, paths in files_of(task, folder))


def read_task(task, data_dir, parts, text_case="as_is"):
    """{split: Examples} of those `parts` (of PARTS) that data_dir has, from any of the layouts.

    train must be there, and dev where it is asked for; test, the released layout's quiz (held.tsv) and the
    diagnostic set are optional.
    """
    if data_dir == "hub":
        return read_hub(task, parts, text_case)
    folder = task_folder(data_dir, task)
    if folder is None:
        raise InputError(
            f"--data_dir {data_dir}: no folder {task.name} found, expected {task.name}/train.jsonl (official"
            f" layout of SuperGLUE) or {task.name}/train.tsv (of GLUE); give the folder that holds the task"
            " folders")
    if task.description is None and (folder / DESCRIPTION).is_file():
        raise InputError(f"{folder / DESCRIPTION}: found in the folder of {task.name}, which is a task of"
                         " this project and needs none; remove it, or give the folder another name")
    layouts = files_of(task, folder)
    found = next(((read, paths) for read, paths in layouts if paths["train"].is_file()), None)
    if found is None:
        names = [paths["train"].name for _, paths in layouts]
        raise InputError(f"{folder}: {'neither ' * (len(names) > 1)}{' nor '.join(names)}"
                         f"{' not' * (len(names) == 1)} found; put the files of {task.name} there")
    read, paths = found
    splits = {}
    for part in parts:
        path = paths.get(part)
        if path is not None and path.is_file():
            splits[part] = build_examples(task, read(path, task), path, text_case)
        elif path is not None and part in LABELLED:
            raise InputError(f"{path}: no such file, expected the labelled validation split of {task.name}")
        elif path is not None and task.layout.files:
            raise InputError(f"{path}: no such file, expected the {part} split that {task.name}'s description"
                             " names")
    for name in task.layout.diagnostic:
        path = folder.parent / name
        if "ax" in parts and "ax" not in splits and path.is_file():
            splits["ax"] = build_examples(task, read_tsv(path, task), path, text_case)
    return splits


def load_hub(repository, config):
    """The DatasetDict `config` of a benchmark's repository, from the cache of `datasets` when offline."""
    from datasets import load_dataset
    from datasets.utils.logging import set_verbosity_error
    set_verbosity_error()
    try:
        try:
            return load_dataset(repository, config)
        except RuntimeError:  # a repository that still has a loading script: its script-free conversion
            return load_dataset(repository, config, revision="refs/convert/parquet")
    # whatever datasets, the hub client or the network raised: one line, one way out
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--data_dir hub: {repository} {config} could not be loaded"
                         f" ({type(error).__name__}: {reason}); connect once to fill the cache, or give a"
                         " folder with the official files") from None


def read_dataset(rows, task, source, first=1):
    """(where, record) of each row of a `datasets.Dataset`, whose rows are numbered from `first`. Class
    numbers become the names that its features give them; InputError unless these are the task's labels, in
    whatever order."""
    label = next((there for there, name in task.layout.columns.items() if name == "label"), "label")
    label = label if label in rows.features else "label"
    names, expected = getattr(rows.features.get(label), "names", None), task.labels
    if names is not None:
        numbers = [class_of(name, task) for name in names]
        if sorted(numbers) != list(range(len(expected))):
            raise InputError(f"{source}: classes {', '.join(names)} found, expected"
                             f" {', '.join(map(str, expected))} in any order; is it the data of {task.name}?")
    for number in range(len(rows)):
        where = f"{source}:{number + first}"
        try:
            record = rows[number]
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: byte {error.start} of a text is not UTF-8") from None
        if names is not None and record[label] in range(len(names)):
            record[label] = names[record[label]]
        yield where, record


def class_of(name, task):
    """The class that a name stands for; -1: none."""
    try:
        number = task.rules.labels.parse(name, task)
    except InputError:
        return -1
    return -1 if number is None else number


HUB_NAMES = {"train": ("train",), "dev": ("validation", "validation_matched"),
             "dev_mismatched": ("validation_mismatched",), "test": ("test", "test_matched"),
             "test_mismatched": ("test_mismatched",)}


def read_hub(task, parts, text_case):
    """read_task for `--data_dir hub`. A task of two benchmarks comes from the repository of the first."""
    repository, config = BENCHMARKS[task.benchmarks[0]], task.name.lower().replace("-", "")
    data, splits = load_hub(repository, config), {}
    for part in parts:
        names = [name for name in HUB_NAMES.get(part, ()) if name in data]
        source = f"{repository}/{config}/{(names or HUB_NAMES.get(part, ('',)))[0]}"
        if names:
            rows = rename(read_dataset(data[names[0]], task, source), task)
            splits[part] = build_examples(task, rows, source, text_case)
        elif part in ("train", "dev"):
            raise InputError(f"{source}: no such split, found {', '.join(data)}")
    return splits


def curriculum_tasks(names, main_task, data_dir):
    """The curriculum's tasks in the table's order, then those that a file describes, the main task among
    them: those named, else those of the main task's benchmark that are in data_dir; of a task that a file
    describes, all such tasks there."""
    if data_dir != "hub" and not Path(data_dir).is_dir():
        raise InputError(f"--data_dir {data_dir}: no such folder; expected a folder that holds"
                         f" {main_task.name}/")
    if names:
        found = [find_task(name, "--tasks", data_dir) for name in names]
    elif main_task.description:
        found = [read_description(path) for path in descriptions(data_dir).values()]
    else:
        benchmarks = main_task.benchmarks
        if data_dir == "hub":  # a task of two benchmarks: the one whose repository it is read from
            benchmarks = benchmarks[:1]
        fellows = [TASKS[name] for benchmark in benchmarks for name in tasks_of(benchmark)]
        found = [task for task in fellows if data_dir == "hub" or has_training_file(data_dir, task)]
    known = {task.name: task for task in (*found, main_task)}
    return [known[name] for name in (*TASKS, *sorted(known.keys() - TASKS.keys())) if name in known]


# --- train and quiz -----------------------------------------------------------------------------------------

def rank_of(task_name, idx, split_seed):
    """A hash of each example: the same on every machine and with every library version, whatever the order of
    the file."""
    return [hashlib.sha256(repr((split_seed, task_name, number)).encode()).digest() for number in idx]


def stratified(strata, rank, size, total):
    """Positions, in order, of `size` of `total` examples, by stratum: of each stratum its share, rounded by
    largest remainder, and of its examples those of lowest rank."""
    counts = Counter(strata)
    quota = {stratum: count * size // total for stratum, count in counts.items()}
    left = (sum(counts.values()) * size + total // 2) // total - sum(quota.values())
    for stratum in sorted(counts, key=lambda stratum: (-(counts[stratum] * size % total), stratum))[:left]:
        quota[stratum] += 1
    taken = []
    for stratum in counts:
        members = sorted((number for number, value in enumerate(strata) if value == stratum),
                         key=rank.__getitem__)
        taken += members[:quota[stratum]]
    return sorted(taken)


def split_train_quiz(task_name, idx, strata, split_seed):
    """Positions (train, quiz) of a 9:1 split, stratified by label (of a regression: by rounded label); both
    in the data's order. quiz as a whole has round(n / 10) examples."""
    quiz = stratified(strata, rank_of(task_name, idx, split_seed), 1, 10)
    taken = set(quiz)
    return [n for n in range(len(idx)) if n not in taken], quiz


def strata_of(task, examples):
    """What splits of labelled examples are stratified by."""
    return [task.rules.labels.stratum(example.label, task) for example in examples]


def at_most(task, examples, limit, split_seed, what):
    """`limit` of the examples, stratified; what: the name in LEFT_OUT under which the others are counted."""
    if limit is None or len(examples) <= limit:
        return examples
    rank = rank_of(task.name, [example.idx for example in examples], split_seed)
    kept = [examples[n] for n in stratified(strata_of(task, examples), rank, limit, len(examples))]
    kept[0].notes[what] = len(examples) - len(kept)
    return kept


# --- encoded splits and batches -----------------------------------------------------------------------------

@dataclass
class Batch:
    """input_ids, attention_mask, token_type_ids (or None): (batch * choices, longest); labels: (batch)."""
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_type_ids: torch.Tensor | None
    labels: torch.Tensor


def to_device(array, device):
    """A NumPy array as a tensor on the device; to a GPU from pinned memory, so that the copy waits for
    nothing and nothing waits for it."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def fetch(tensor):
    """A function that gives the tensor on the host. From a GPU it is sent now and waited for then."""
    if tensor.device.type != "cuda":
        return lambda: tensor
    there, sent = tensor.to("cpu", non_blocking=True), torch.cuda.Event()
    sent.record()

    def wait():
        sent.synchronize()
        return there
    return wait


@dataclass
class Split:
    """A tokenised split: the rows' token ids end to end in one int32 array; row r is
    input_ids[offsets[r]:offsets[r + 1]].

    labels: (examples), of the type that the kind of the task says, what it has for a missing one included.
    checksum: of texts, labels and idx, before the tokenizer.
    """
    task: Task
    name: str
    idx: list
    where: list
    labels: torch.Tensor
    input_ids: np.ndarray
    token_type_ids: np.ndarray | None
    offsets: np.ndarray
    pad_ids: tuple
    pad_to: int | None
    truncated: int
    checksum: str
    notes: dict
    resident: dict = field(init=False, default_factory=dict, repr=False, compare=False)  # on a GPU

    def __len__(self):
        return len(self.idx)

    @property
    def labelled(self):
        missing = (self.labels == self.task.rules.labels.missing) | self.labels.isnan()
        return not missing.any()

    def lengths(self):
        """(examples) int64: tokens of each example's longest row."""
        return np.diff(self.offsets).reshape(len(self), self.task.rows).max(axis=1)

    def rows(self, indices):
        """The row numbers of examples, an example's choices side by side: (len(indices) * choices)."""
        return (np.asarray(indices)[:, None] * self.task.rows + np.arange(self.task.rows)).reshape(-1)

    def batch(self, indices, device="cpu"):
        """The Batch of these examples, padded on the right to their longest row, or to pad_to tokens."""
        rows = self.rows(indices)
        starts, lengths = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        longest = self.pad_to or int(lengths.max())
        if torch.device(device).type == "cuda":
            return self.batch_there(np.asarray(indices), starts, lengths, longest, device)
        columns = np.arange(longest)
        inside = columns < lengths[:, None]                                        # (rows, longest)
        places = np.where(inside, starts[:, None] + columns, 0)

        def padded(flat, pad):
            return torch.from_numpy(np.where(inside, flat[places], pad).astype(np.int64))

        types = None if self.token_type_ids is None else padded(self.token_type_ids, self.pad_ids[1])
        mask = torch.from_numpy(inside.astype(np.int64))
        return Batch(padded(self.input_ids, self.pad_ids[0]), mask, types, self.labels[np.asarray(indices)])

    def batch_there(self, indices, starts, lengths, longest, device):
        """batch on a GPU, where all tokens and labels of the split stay; only which ones is sent."""
        if not self.resident:
            flat = (self.input_ids, self.token_type_ids)
            self.resident["tokens"] = [
                None if part is None else torch.from_numpy(part).to(device, torch.int64) for part in flat]
            self.resident["labels"] = self.labels.to(device)
        sent = to_device(np.concatenate([starts, lengths, indices]), device)
        starts, lengths, indices = sent.split([len(starts), len(lengths), len(indices)])
        columns = torch.arange(longest, device=device)
        inside = columns < lengths[:, None]
        places = torch.where(inside, starts[:, None] + columns, 0)
        tokens, types = (None if flat is None else torch.where(inside, flat[places], pad)
                         for flat, pad in zip(self.resident["tokens"], self.pad_ids))
        return Batch(tokens, inside.to(torch.int64), types, self.resident["labels"][indices])

    def encoded_checksum(self):
        """sha256 of everything that a model reads of the split: token ids, segments, padding, and the
        labels."""
        digest = hashlib.sha256(repr((self.task.kind, self.pad_ids, self.pad_to)).encode())
        for array in (self.input_ids, self.token_type_ids, self.offsets, self.labels.numpy()):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def summary(self):
        """What args and results say of the split."""
        spans = {how: count for how, count in self.notes.items()
                 if how not in (*COUNTED, *WARNINGS) and not how.startswith(UNREAD)}
        return {
            "examples": len(self), "truncated": self.truncated, "labelled": self.labelled,
            "sha256": self.checksum, **({"spans": spans} if spans else {}),
            **{how: self.notes[how] for how in COUNTED if how in self.notes}
        }

    def absent_labels(self):
        """Labels of the task that no example has."""
        seen = set(self.labels.tolist()) if self.labelled else range(len(self.task.labels))
        return [label for number, label in enumerate(self.task.labels) if number not in seen]

    def remarks(self):
        """What a reader should know of the split besides, a line each."""
        name = f"{self.task.name}/{self.name}"
        for how, words in WARNINGS.items():
            if how in self.notes:
                yield f"warning: {name}: {self.notes[how]} of {len(self)} examples {words}"
        for how, words in LEFT_OUT.items():
            if how in self.notes:
                yield f"{name}: {self.notes[how]} {words}"
        if unread_fields(self.notes):
            yield f"{name}: fields not read: {unread_fields(self.notes)}"


def checksum_examples(task, examples):
    """sha256 over task, idx, texts and labels (-1: not given) of examples, in order."""
    content = [[task.name, task.kind, list(map(str, task.labels))]]
    content += [[example.idx, example.pairs, -1 if example.label is None else example.label]
                for example in examples]
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()


def encode_split(task, name, examples, tokenizer, max_seq_length, cls_segment="tokenizer", padding="longest"):
    """Tokenise examples once. Longer rows are cut, the longer text first (METHOD.md row 7); the cut examples
    are counted. cls_segment "one": the first token's segment is 1 (row 4). padding "max_length": to
    max_seq_length always (row 6)."""
    pairs = [pair for example in examples for pair in example.pairs]
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    single = second[0] is None
    encoded = tokenizer(first, None if single else second, truncation=False, verbose=False)
    ids, types = encoded["input_ids"], encoded.get("token_type_ids")
    long = [row for row, tokens in enumerate(ids) if len(tokens) > max_seq_length]
    if long:
        cut = tokenizer([first[row] for row in long], None if single else [second[row] for row in long],
                        truncation="longest_first", max_length=max_seq_length)
        for place, row in enumerate(long):
            ids[row] = cut["input_ids"][place]
            if types is not None:
                types[row] = cut["token_type_ids"][place]
    if types is not None and cls_segment == "one":
        types = [[1, *row[1:]] for row in types]
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in ids])])
    notes = sum((example.notes for example in examples), Counter())
    unknown = {row // task.rows for row, tokens in enumerate(ids) if tokenizer.unk_token_id in tokens}
    if unknown:
        notes["unknown"] = len(unknown)
    pad_ids, kind = (tokenizer.pad_token_id, getattr(tokenizer, "pad_token_type_id", 0)), task.rules.labels
    return Split(task=task, name=name, idx=[example.idx for example in examples],
                 where=[example.where for example in examples],
                 labels=torch.tensor([kind.missing if example.label is None else example.label
                                      for example in examples], dtype=kind.type),
                 input_ids=np.concatenate(ids).astype(np.int32),
                 token_type_ids=None if types is None else np.concatenate(types).astype(np.int8),
                 offsets=offsets, pad_ids=pad_ids, pad_to=max_seq_length if padding == "max_length" else None,
                 truncated=len({row // task.rows for row in long}),
                 checksum=checksum_examples(task, examples), notes=dict(sorted(notes.items())))


def load_task(task, data_dir, tokenizer, max_seq_length, split_seed, quiz_batch_size, parts=PARTS,
              text_case="as_is", quiz_size=None, max_train=None, **encoding):
    """{split name: Split} of a task: those `parts` that there are; train and quiz must be labelled, and quiz
    fill a batch. quiz_size, max_train: as many examples of them at most."""
    wanted = [part for part in PARTS if part in parts or part == "train"]
    examples = read_task(task, data_dir, wanted, text_case)
    whole = examples["train"]
    source = whole[0].where.rsplit(":", 1)[0]
    for name in ("train", "quiz"):
        if name in examples and examples[name][0].label is None:
            unread = unread_fields(examples[name][0].notes)
            raise InputError(f"{examples[name][0].where}: no label found, expected every {name} example to"
                             f" have one{unread and f'; fields not read: {unread}'}")
    broken = whole[0].notes.pop("broken", 0)  # of the file, whichever part its first example becomes one of
    trained_on = {tuple(example.pairs) for example in whole}
    for example in sum((examples[name] for name in examples if name != "train"), []):
        if tuple(example.pairs) in trained_on:
            example.notes["in_train"] += 1
    if "quiz" not in examples:
        idx = [example.idx for example in whole]
        train, quiz = split_train_quiz(task.name, idx, strata_of(task, whole), split_seed)
        examples |= {"train": [whole[n] for n in train], "quiz": [whole[n] for n in quiz]}
    for name, limit, what in (("train", max_train, "over_max_train"), ("quiz", quiz_size, "over_quiz_size")):
        examples[name] = at_most(task, examples[name], limit, split_seed, what)
    if broken:
        examples["train" if "train" in parts else "quiz"][0].notes["broken"] = broken
    if len(examples["quiz"]) < quiz_batch_size:
        raise InputError(f"--val_dataloader_size {quiz_batch_size}: {task.name} has {len(examples['quiz'])}"
                         f" quiz examples (from {source}), expected at least one whole batch; lower it or"
                         f" leave {task.name} out of --tasks")
    if not examples["train"]:
        raise InputError(f"{source}: no examples left for train; expected at least two")
    return {name: encode_split(task, name, examples[name], tokenizer, max_seq_length, **encoding)
            for name in parts if name in examples}


def resolve_tasks(args):
    """(main task, [curriculum tasks]) as the protocol reads them."""
    protocol, main_task = resolve_protocol(args), find_task(args.task, data_dir=args.data_dir)
    tasks = curriculum_tasks(args.tasks, main_task, args.data_dir)
    return protocol_task(main_task, protocol), [protocol_task(task, protocol) for task in tasks]


def resolve_settings(args):
    """The flags as args.json holds them: tasks as the table spells them, every choice of the protocol
    said."""
    task, tasks = resolve_tasks(args)
    return {**written(args), "task": task.name, "tasks": [task.name for task in tasks],
            "protocol_choices": asdict(resolve_protocol(args))}


def load_data(args, main_task, tasks, tokenizer, protocol):
    """(splits of the main task by name, {curriculum task: its quiz Split} in the order of `tasks`)."""
    read = {}
    for task in tasks:
        parts = PARTS if task.name == main_task.name else ("quiz",)
        read[task.name] = load_task(task, args.data_dir, tokenizer, args.max_seq_length, args.split_seed,
                                    args.val_dataloader_size, parts, protocol.text_case, args.quiz_size,
                                    args.max_train, cls_segment=protocol.cls_segment,
                                    padding=protocol.padding)
    return read[main_task.name], {name: splits["quiz"] for name, splits in read.items()}


def check_selection(select_on, data):
    """InputError unless the split that selects has labels."""
    if not data[select_on].labelled:
        raise InputError(f"--select_on {select_on}: {data[select_on].where[0]} has no label; expected a"
                         f" labelled {select_on} split, or --select_on quiz")


def join_splits(splits):
    """One Split of the examples of several, one after the other; a single one as it is."""
    if len(splits) == 1:
        return splits[0]
    first, ends = splits[0], np.cumsum([split.offsets[-1] for split in splits])
    offsets = [first.offsets, *(split.offsets[1:] + end for split, end in zip(splits[1:], ends))]
    types = None
    if first.token_type_ids is not None:
        types = np.concatenate([split.token_type_ids for split in splits])
    return replace(first, name="_and_".join(split.name for split in splits),
                   idx=[number for split in splits for number in split.idx],
                   where=[place for split in splits for place in split.where],
                   labels=torch.cat([split.labels for split in splits]),
                   input_ids=np.concatenate([split.input_ids for split in splits]), token_type_ids=types,
                   offsets=np.concatenate(offsets), truncated=sum(split.truncated for split in splits),
                   checksum=" ".join(split.checksum for split in splits))


def batches_by_length(split, batch_size, tokens=None):
    """One pass in order of length, for work whose result does not depend on the order: little padding.
    tokens: as many of them, padding included, as a batch may have besides."""
    lengths = split.lengths()
    order = np.argsort(-lengths, kind="stable")
    if tokens is None:
        return cut_order(order, batch_size)
    batches, start = [], 0
    while start < len(order):
        each = split.task.rows * (split.pad_to or int(lengths[order[start]]))
        end = start + max(1, min(batch_size, tokens // each))
        batches.append(order[start:end])
        start = end
    return batches
