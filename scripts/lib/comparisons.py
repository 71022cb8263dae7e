"""Paired differences between rows, and what may be said of them."""
from functools import cached_property

from lib.formats import probability, span
from lib.rows import BASELINE_ROWS, MPDISTIL, ROWS, label_of
from lib.statistics import corrected, mean_interval, paired_t_p, permutation_p

AGAINST = ("kd", "kd_200", "kd_quiz", "uniform", "teacher")  # what each MPDistil row is compared with
# and the policy that can learn
LEARNING_AGAINST = ("kd_200", "uniform", "no_curriculum_col", "mpdistil_col_real")
FACTORS = {  # averaged over the other choice: (rows of one side, rows of the other)
    "real - binary": (["mpdistil_col_real", "mpdistil_com_real"],
                      ["mpdistil_col_binary", "mpdistil_com_binary"]),
    "competitive - collaborative": (["mpdistil_com_binary", "mpdistil_com_real"],
                                    ["mpdistil_col_binary", "mpdistil_col_real"]),
}
LEVEL = 0.05
MISSING = "missing"
SAME = "same run"
COLUMNS = ["looks", "difference", "95% interval", "by seed", "p, examples", "p, seeds", "corrected", "so"]


class Comparison:
    """Two sides, each a list of rows whose mean counts, on one task over the seeds that all have. what: the
    first cells of its line in a table. same: why it is none of its own, where both sides are one computation,
    or those of an earlier comparison; it has no figures then, and is not counted."""

    def __init__(self, found, task, first, second, what):
        self.found, self.task, self.sides, self.what = found, task, (first, second), what
        self.seeds = found.seeds(task, *first, *second)
        self.same, self.earlier, self.p_corrected = None, None, None  # when all comparisons are known

    @property
    def counts(self):
        """Whether it is one of the comparisons that p is corrected for."""
        return bool(self.seeds) and not self.same

    @cached_property
    def scores(self):
        """Of both sides, right answers or minus the squared errors: (seeds, examples) each."""
        return [self.found.scores(self.task, names, self.seeds) for names in self.sides]

    @cached_property
    def interval(self):
        """(mean, low, high) of the difference."""
        first, second = self.scores
        return mean_interval(first - second, ends=(-1.0, 1.0) if self.in_percent else (None, None))

    @property
    def mean(self):
        first, second = self.scores
        return (first - second).mean()

    @property
    def in_percent(self):
        """Whether it is a difference of shares; else one of squared errors, in the labels' unit squared."""
        return self.found.counts(self.task)

    def spoken(self, value):
        """A difference as a table shows it."""
        return f"{100 * value:+.1f}" if self.in_percent else f"{value:+.4f}"

    @cached_property
    def p_values(self):
        """Of the test over examples and the one over seeds."""
        return permutation_p(*self.scores), paired_t_p(*self.scores, self.in_percent)

    @property
    def looks(self):
        """At dev, of which each side kept the best."""
        return [span([len(figures["looks"]) for name in names
                      for figures in self.found.cell(self.task, name).values()]) for names in self.sides]

    @property
    def verdict(self):
        """What may be said: a direction only where the corrected p carries it, and of more than one seed."""
        if self.same:
            return self.earlier.verdict if self.earlier else SAME
        if len(self.seeds) < 2:
            return "one seed"
        if not self.p_corrected < LEVEL:
            return "no difference shown"
        return "higher" if self.mean > 0 else "lower"

    def cells(self):
        """A line of a table."""
        if not self.seeds:
            return [*self.what, MISSING, *[""] * (len(COLUMNS) - 1)]
        if self.same:
            return [*self.what, *[""] * (len(COLUMNS) - 1), self.same]
        (first, second), (mean, low, high) = self.scores, self.interval
        of_seeds = (first - second).sum(1) if self.in_percent else (first - second).mean(1)
        by_seed = " ".join(f"{value:+.3g}" for value in of_seeds)
        return [*self.what, " : ".join(self.looks), self.spoken(mean),
                f"{self.spoken(low)} to {self.spoken(high)}", by_seed,
                *map(probability, (*self.p_values, self.p_corrected)), self.verdict]


def compare(found):
    """All Comparisons: {(task, row, against)}, and those of the factors, their p corrected for all that
    count. Where phases alternate, competitive rows are compared with the teacher alone: the controls there
    begin with the collaborative loss's student. Where the loss reaches the student directly (meta_term), they
    are not compared with the uniform run, whose loss is the collaborative one.

    The p that is corrected (Holm) is the larger one of two, over examples and over seeds, since a reader
    will see neither these seeds nor these examples again. Each alone names directions where there are none:
    the permutation test, which takes the seeds as they are, where seeds spread; t over seeds, which takes
    the examples as they are, where two rows get different examples right for good. The larger p is below a
    bound no more often than either, so that Holm's bound holds where seeds or examples make a difference;
    that it holds where both do is found by the simulation in tests/test_tables.py. Intervals at a corrected
    level are no way out: they would be quantiles of a bootstrap of five seeds, or t over seeds alone.

    What is one computation is compared once: counted more often it would give the same evidence several
    times, and have p corrected for comparisons that nobody made.
    """
    rows = {(task, row, other): Comparison(found, task, [row], [other], [label_of(row), label_of(other)])
            for task in found.tasks for row in MPDISTIL for other in AGAINST
            if ROWS[row].loss == "col" or not (found.alternating and other != "teacher"
                                               or found.attached and other == "uniform")}
    rows |= {(task, row, other): Comparison(found, task, [row], [other], [label_of(row), label_of(other)])
             for task in found.tasks for row in ["mpdistil_learning"] if found.cell(task, row)
             for other in LEARNING_AGAINST}
    rows |= {(task, row, "kd"): Comparison(found, task, [row], ["kd"], [label_of(row), label_of("kd")])
             for task in found.tasks for row in BASELINE_ROWS if found.cell(task, row)}
    factors = {(task, name): Comparison(found, task, *sides, [f"{task}: {name}"])
               for task in found.tasks for name, sides in FACTORS.items()}
    known = [comparison for comparison in (*rows.values(), *factors.values()) if comparison.seeds]
    mark_same(found, known)
    correct_all(known)
    return rows, factors


def correct_all(known):
    """Give all Comparisons that count their p, corrected (Holm) for as many as these are."""
    family = [comparison for comparison in known if comparison.counts]
    p_values = [max(comparison.p_values) for comparison in family]
    for comparison, p in zip(family, corrected(p_values), strict=True):
        comparison.p_corrected = p


def mark_same(found, known):
    """Mark the Comparisons whose sides are one computation, and those that repeat an earlier one; what is
    marked already stays so."""
    seen = {}
    for comparison in known:
        if comparison.same:
            continue
        task = comparison.task
        first, second = (tuple(sorted({found.same_run(task, name) for name in names}))
                         for names in comparison.sides)
        if first == second:
            comparison.same = SAME
        elif (task, first, second) in seen:
            comparison.earlier = seen[task, first, second]
            comparison.same = f"{SAME} as {' and '.join(map(found.label_of, first))}"
        else:
            seen[task, first, second] = comparison
