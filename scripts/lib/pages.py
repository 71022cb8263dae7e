"""The page of a table: what stands on it, in which order, and what it says in words."""
from lib.comparisons import FACTORS, LEVEL, SAME, compare
from lib.formats import probability, span
from lib.rows import LEARNING_RATE, LEARNING_SET, MPDISTIL, ROWS, label_of
from lib.run_records import batches_of, environments_of, mixture_of, process_seconds
from lib.tables import (
    count_table,
    difference_table,
    factor_table,
    few_looks,
    limit_text,
    main_table,
    policy_table,
    same_picks,
    selection_effect,
    selection_table,
    task_of,
    wins_table,
)

from arguments import parse_arguments, with_defaults
from bookkeeping.run_folder import LIMITS
from tasks import TASKS

LEARNT = ["mpdistil_learning"]
# flags that the page names anyway
SAID = ("teacher_epochs", "epochs", "meta_epochs", "num_episodes", "tasks")


# --- below the main table -----------------------------------------------------------------------------------

def missing_texts(found, table, left_out):
    """What the table lacks."""
    nothing = [f"{name} {metric}" for name, metric in table["columns"]
               if task_of(name) not in found.tasks]
    if nothing:
        yield f"Missing: no runs of {', '.join(nothing)}."
    partly = {task: [name for name in ROWS if not ROWS[name].baseline and not found.cell(task, name)]
              for task in found.tasks}
    if any(partly.values()):
        yield "Missing rows: " + "; ".join(f"{task}: {', '.join(names)}"
                                           for task, names in partly.items() if names) + "."
    if left_out:
        yield f"Left out: {'; '.join(left_out)}."


def same_text(found):
    """Which rows are one computation; None without any."""
    parts = []
    for task in found.tasks:
        groups = {}
        for name in ROWS:
            if found.same_run(task, name) != name:
                groups.setdefault(found.same_run(task, name), []).append(label_of(name))
        parts += [f"{task}: {'; '.join(labels)}: as {label_of(first)}" for first, labels in groups.items()]
    if not parts:
        return None
    return (f"({SAME}): up to the look that was kept the same computation as another row, with the same"
            f" picks, looks and answers on every seed; one student, which counts once. {'. '.join(parts)}.")


def control_texts(found):
    """In what the controls differ from phase 4 beside the method."""
    more = [record["data"][f"{task}/quiz"]["examples"] / record["data"][f"{task}/train"]["examples"]
            for task in found.tasks for record in found.records if record["task"] == task]
    yield ("Phase 4 trains on quiz, which the controls `kd` and `kd_200` never see:"
           f" {span([round(100 * share) for share in more])}% more labels than train alone. `kd_quiz` is"
           " distilled on train and quiz together.")
    sizes = {batches_of(record) for record in found.records if "kd_200" in record["rows"]}
    for control, phase_4 in sorted(pair for pair in sizes if None not in pair):
        if control != phase_4:
            yield f"A step of `kd_200` has {control} examples, a step of phase 4 {phase_4}."


def protocol_texts(found):
    """What the protocol makes of rows."""
    if found.alternating:
        yield ("Phases 2 and 3 alternate, so that a distilled student depends on the loss: the rows `kd`,"
               " `kd_200` and `kd_quiz` are the collaborative ones, and competitive rows are not compared"
               " with them or with `uniform`.")
    if any(record.get("learning") for record in found.records):
        yield (f"`mpdistil_learning` is ours: --set {' '.join(LEARNING_SET)} --policy_learning_rate"
               f" {LEARNING_RATE:g}. Its reward is what a step's update changes.")
    if found.records[0]["protocol"] == "paper" and not found.records[0]["set"]:
        yield ("In `paper` the meta-teacher is a constant for the student: loss and reward reach it by the"
               " policy alone. So `without curriculum` is the same computation with either loss, and one"
               " uniform run stands for all four.")


# --- what was run -------------------------------------------------------------------------------------------

def describe(found):
    """Encoder, protocol, selection, data, machine."""
    first = found.records[0]
    encoder = first["encoder"]
    student = "" if encoder["student"] == encoder["teacher"] else f" of {encoder['student']}"
    yield (f"Encoder: {encoder['teacher']} (sha256 {encoder['teacher_sha256'][:16]}) as teacher, its student"
           f" the first {encoder['nlayers']} layers{student}. Where that is not the paper's encoder, compare"
           " differences between rows, not levels.")
    changes = "".join(f", {change}" for change in first["set"])
    yield (f"Protocol `{first['protocol']}`{changes}. The epoch or episode that is kept is the best on dev,"
           " the split that is reported, as in the paper: all levels are optimistic.")
    for task in found.tasks:
        yield describe_task(found, task)
        yield describe_rates(found, task)
    absent = list(dict.fromkeys(unofficial_sizes(found)))
    own = sorted({name.split("/")[0] for record in found.records for name in record.get("descriptions", ())})
    said = ["; ".join(absent) + ": rows are missing, or it is other data"] if absent else (
        ["all that was read of official files has their sizes"] if own else
        ["all that was read has the sizes of the official files"])
    said += [f"{', '.join(own)}: described by a task.json, no official files"] if own else []
    yield f"Data: {'; '.join(said)}."
    yield describe_machine(found)
    mixture = mixture_of(found.records)
    if mixture:
        yield f"Mixed, as --mixed allows: {'; '.join(mixture)}."


def describe_task(found, task):
    of_task = [record for record in found.records if record["task"] == task]
    flags, data = of_task[0]["flags"], of_task[0]["data"]
    seeds = ", ".join(map(str, sorted({record["seed"] for record in of_task})))
    usual = vars(parse_arguments(["--task", task, "--data_dir", ""]))
    others = [f"--{name} {value}" for name, value in flags.items()
              if name not in SAID and usual.get(name) != value]
    sizes = ", ".join(f"{name.split('/')[1]} {split['examples']}" for name, split in data.items()
                      if name.split("/")[0] == task)
    default = usual["num_episodes"]
    episodes = "" if flags["num_episodes"] == default else f" (not the default, {default})"
    return (f"{task}: seeds {seeds}; {flags['teacher_epochs']} teacher, {flags['epochs']} student and"
            f" {flags['meta_epochs']} meta-teacher epochs, {flags['num_episodes']} episodes{episodes}, as"
            f" many looks for the control kd_200; {', '.join([*others, 'other flags as by default'])};"
            f" examples: {sizes}.")


def describe_rates(found, task):
    """Which rates the runs of a task have, and how they were chosen."""
    of_task = [record for record in found.records if record["task"] == task]
    flags, rates = with_defaults(of_task[0]["flags"]), of_task[0].get("rates")
    said = (f"{task}: learning rates {flags['teacher_learning_rate']:g} (teacher) and"
            f" {flags['learning_rate']:g} (student)")
    if not rates or any(record.get("rates") != rates for record in of_task):
        return f"{said}, not chosen on quiz."
    return (f"{said}, chosen by the score on quiz ({rates['quiz']} examples) over {rates['splits']} divisions"
            f" of the training split, record {rates['checksum']}: {'; '.join(rates['said'])}.")


def unofficial_sizes(found):
    """What has not as many examples as the official files."""
    sizes = {name: split["examples"] + sum(split.get(f"over_{limit}", 0) for limit in LIMITS)
             for record in found.records for name, split in record["data"].items()}
    for task in TASKS:
        train, *others = TASKS[task].official.items()
        both = sizes.get(f"{task}/train", 0) + sizes.get(f"{task}/quiz", 0)
        for part, here, expected in (("train and quiz together", both, train[1]),
                                     *((part, sizes.get(f"{task}/{part}"), rows) for part, rows in others)):
            if task not in found.tasks:  # of a task that is in the curriculum alone, quiz is all that is read
                part, here, expected = "quiz", sizes.get(f"{task}/quiz"), (train[1] + 5) // 10
            if here is not None and here != expected:
                yield f"{task} {part} {here} examples, where the official files give {expected}"


def describe_machine(found):
    environments = [environment for record in found.records for environment in environments_of(record)]

    def used(name):
        return span(str(environment.get(name) or "none") for environment in environments)

    cpu = f" ({used('cpu')})" if any(environment.get("cpu") for environment in environments) else ""
    commits = sorted({(environment["git_commit"] or "unknown")[:10] for environment in environments})
    peaks = [record["peak_memory_bytes"] for record in found.records if record["peak_memory_bytes"]]
    memory = f"{span(f'{peak / 2 ** 30:.1f}' for peak in peaks)} GiB" if peaks else "unknown"
    hours = process_seconds(found.records) / 3600
    return (f"Machine: GPU {used('gpu')}, CPU threads a run {used('cpu_threads')}{cpu}, torch"
            f" {used('torch')}, transformers {used('transformers')}, commit {', '.join(commits)}; peak memory"
            f" of a run {memory}; {len(found.records)} runs with {hours:.1f} process hours of training in"
            " all.")


# --- what may be said ---------------------------------------------------------------------------------------

def verdict_of(known, more, less, neither):
    """The words that the corrected tests of some Comparisons carry."""
    if all(len(comparison.seeds) < 2 for comparison in known):
        return "was compared in one seed alone, which shows no direction"
    higher, lower = (sum(comparison.verdict == word for comparison in known) for word in ("higher", "lower"))
    many = f"{len(known)} comparison{'s' * (len(known) > 1)}"
    said = [f"{words} in {count} of {many}" for words, count in ((more, higher), (less, lower)) if count]
    return " and ".join(said) or f"{neither} in any of {many}"


def differences_of(known):
    """Their differences, task by task."""
    texts = []
    for task in dict.fromkeys(comparison.task for comparison in known):
        of_task = [comparison for comparison in known if comparison.task == task]
        unit = "points" if of_task[0].in_percent else "(minus the squared error)"
        texts.append(f"{task} {span([one.mean for one in of_task], of_task[0].spoken)} {unit}")
    return "; ".join(texts)


def answer(subject, other, comparisons, verbs=("is better than", "is worse than")):
    """A sentence on some Comparisons. What is one computation is named, and not counted."""
    known = [comparison for comparison in comparisons if comparison.counts]
    same = ", ".join(dict.fromkeys(comparison.task for comparison in comparisons if comparison.same == SAME))
    if not known:
        return f"{subject} and {other}: " + (f"the {SAME} on {same}." if same else "not run.")
    more, less = (f"{verb} {other}" for verb in verbs)
    verdict = verdict_of(known, more, less, f"is not shown to differ from {other}")
    also = f"; the {SAME} on {same}" if same else ""
    return f"{subject} {verdict} ({differences_of(known)}){also}."


def sentences(found, rows, factors, wins):
    """The five questions, and that of the policy that can learn where it was run, each answered by no more
    than what the tests carry."""
    def against(other, of=MPDISTIL):
        return [comparison for (_, row, second), comparison in rows.items()
                if row in of and second == other and comparison.seeds]

    def factor(name):
        return [comparison for (_, of), comparison in factors.items() if of == name and comparison.seeds]

    policy = answer("The learnt policy", "a uniform one", against("uniform"))
    picks = [same_picks(found, task, name) for task in found.tasks for name in MPDISTIL]
    picks = [100 * same for same in picks if same is not None]
    if picks:
        policy = (f"{policy[:-1]}; in {span(picks, lambda value: f'{value:.1f}')}% of the steps it picks the"
                  " very task that chance alone picks with the same seed.")
    yield policy
    longer = "the distilled student that is distilled on for as many steps and looks (kd_200)"
    with_quiz = "the one that is distilled on train and quiz together (kd_quiz)"
    yield " ".join(answer("Phase 4", other, against(row), ("beats", "loses to"))
                   for other, row in ((longer, "kd_200"), (with_quiz, "kd_quiz")))
    real, competitive = map(factor, FACTORS)
    yield " ".join((answer("The real reward", "the binary one", real),
                    answer("The competitive loss", "the collaborative one", competitive)))
    yield student_sentence(against("teacher"), wins)
    yield selection_sentence(found)
    learning = [answer("The policy that can learn (ours)", words, against(row, LEARNT))
                for row, words in (("uniform", "a uniform one"), ("no_curriculum_col", "the main task alone"),
                                   ("mpdistil_col_real", "the learnt policy"))
                if against(row, LEARNT)]
    if learning:
        yield " ".join(learning)


def student_sentence(comparisons, wins):
    text = answer("A student", "its teacher", comparisons, ("is above", "is below"))
    if "best of the four" not in wins:
        return text
    singles = span(f"{above} of {tasks}" for label, (above, tasks, _) in wins.items()
                   if label != "best of the four")
    above, tasks, chance = wins["best of the four"]
    looks = span(" against ".join(comparison.looks) for comparison in comparisons)
    return (f"{text[:-1]}; by their means alone, which show no direction, single variants are above it in"
            f" {singles} tasks and the best of the four in {above} of {tasks}, whose chance is at most"
            f" {probability(chance)} if nothing differs; what is kept is the best of {looks} looks, which"
            " favours the student.")


def selection_sentence(found):
    worth = []
    for task in found.tasks:
        effects = [selection_effect(found, task, name) for name in (*MPDISTIL, "uniform")]
        effects = [effect for effect in effects if effect]
        if effects:
            mean, few = (span([100 * effect[key] for effect in effects], lambda value: f"{value:.1f}")
                         for key in ("over_mean", "over_few"))
            looks = span([looks for effect in effects for looks in effect["looks"]])
            worth.append(f"on {task} {mean} points above the mean of its {looks} looks and {few} above what"
                         f" the best of {few_looks(found, task)} would be")
    return (f"The best look at dev that phase 4 keeps stands {'; '.join(worth)}." if worth
            else "Selection on dev: phase 4 was not run.")


# --- the page -----------------------------------------------------------------------------------------------

LEVELS = "Accuracy and the like on dev in percent, mean ± standard deviation over n seeds"
DIFFERENCES = (
    "Row minus the row that it is compared with, in points, over the seeds that both have. Looks: at dev,"
    " of which each side kept the best; more of them favour a side. Interval: 95%, of this comparison"
    " alone, the outer ends of a bootstrap over seeds and examples and of Student's t over seeds. By seed:"
    " difference in correct answers. p over examples: permutation test, an example's answers of all seeds"
    " swapped together, these seeds taken as they are. p over seeds: paired t, these examples taken as"
    " they are. Corrected: the larger of both, for all comparisons on this page (Holm). A direction is"
    f" given only where it is below {LEVEL:g}. The {SAME}: what is one computation is compared once."
    " Comparisons of one task are not independent: the four rows share their first student and their"
    " controls.")
SQUARED = (
    " Of a regression the differences are of minus the squared error, the mean over examples, in the labels'"
    " unit squared: positive is better. By seed: that mean. Its permutation test is by random swaps.")
POLICY = (
    "Means over seeds; entropy in nats (of n tasks at most ln n), reward summed over an episode. Real and"
    " binary rewards, and those of the two losses' meta-teachers, are different scales.")
SELECTION = (
    "The score on dev in percent, means over seeds: of the look that was kept, of all looks, of the last one,"
    " and of the best of as many looks as phase 2 has, drawn from the same curve. What is kept stands"
    " above the mean by selection and by what is learnt on the way.")
WINS = (
    "Tasks in which the student's mean over seeds is above, equal to or below its teacher's, which shows"
    " no direction; shown above: in how many the corrected test above carries it. Chance of so many above"
    " if nothing differs: answers of teacher and students dealt out anew, example by example, which for"
    " students that are alike is too high, and leaves out that students were kept from more looks. For the"
    " paper, whose answers are not known, ties left out: one in two for a student, one in two (four that"
    " are the same) to four in five (four as different as the teacher) for the best of four.")


def build(found, table, table_name, left_out, source, notes):
    """The page, as formats.py describes it."""
    rows, factors = compare(found)
    header, lines, wins = wins_table(found, table, rows)
    counts = count_table(found)
    below = [*missing_texts(found, table, left_out), same_text(found), *control_texts(found),
             *protocol_texts(found)]
    return [
        ("heading", f"Table {table_name}: {table['title']}" if table["values"] else table["title"]),
        ("heading", "What the runs say"),
        ("list", list(sentences(found, rows, factors, wins))),
        ("figures", None),
        ("heading", "Ours beside the paper's" if table["values"] else "All rows"),
        ("text", f"{LEVELS}; in the columns `paper` the numbers of {source}" if table["values"]
         else f"{LEVELS}."),
        ("table", ("main", *main_table(found, table))),
        *(("limits", text) for text in [limit_text(found)] if text),
        *(("text", text) for text in below if text),
        ("heading", "What was run"),
        ("list", [*notes, *describe(found)]),
        *([("heading", "Correct answers by seed"), ("table", ("counts", *counts))] if counts else []),
        ("heading", "Paired differences"),
        ("text", DIFFERENCES + SQUARED * (not all(map(found.counts, found.tasks)))),
        *(("table", (f"differences {task}", *difference_table(task, rows))) for task in found.tasks),
        ("table", ("factors", *factor_table(factors))),
        ("heading", "What the policy does"),
        ("text", POLICY),
        ("table", ("policy", *policy_table(found))),
        ("heading", "What selecting on dev is worth"),
        ("text", SELECTION),
        *(("table", (f"selection {task}", *selection_table(found, task))) for task in found.tasks),
        ("heading", "Does the student beat its teacher?"),
        ("text", WINS),
        ("table", ("wins", header, lines)),
    ]
