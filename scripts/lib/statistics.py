"""Statistics of tables: intervals, tests of differences, corrections. scipy and statsmodels are imported
where used.

Rows are right (1) or wrong (0), or minus the squared errors of a regression, or means of such rows, as arrays
(seeds, examples).
"""
import functools
import hashlib
import pickle

import numpy as np

RESAMPLES = 9999


def by_content(function):
    """The function, which remembers its answers: a page asks the same of the same rows several times, in its
    sentences, tables and figures, and drawing thousands of samples takes seconds."""
    answers = {}

    @functools.wraps(function)
    def remembered(*given, **named):
        key = hashlib.sha256(pickle.dumps((given, named))).digest()
        if key not in answers:
            answers[key] = function(*given, **named)
        return answers[key]

    return remembered


def exact_interval(correct, total, level=0.95):
    """Clopper-Pearson interval (low, high) of a share of right answers."""
    from scipy.stats import binomtest
    interval = binomtest(correct, total).proportion_ci(level, method="exact")
    return interval.low, interval.high


@by_content
def mean_interval(values, level=0.95, ends=(-1.0, 1.0)):
    """(mean, low, high) of values: (seeds, examples), which lie between `ends` (None: anywhere). The interval
    has the outer ends of two: the percentile bootstrap over seeds and examples, drawn anew independently
    (Owen 2007, "The pigeonhole bootstrap"), and Student's t over the seeds' means, since a bootstrap of few
    seeds is too narrow. Of one seed: the bootstrap over its examples alone, which says nothing of other
    seeds."""
    from scipy.stats import bootstrap, t
    values = np.asarray(values, dtype=float)
    seeds, examples = values.shape

    def mean_of(*drawn, axis):
        if len(drawn) == 1:
            return values[0][drawn[0]].mean(axis)
        return values[drawn[0][..., :, None], drawn[1][..., None, :]].mean((-2, -1))

    places = (np.arange(examples),) if seeds == 1 else (np.arange(seeds), np.arange(examples))
    interval = bootstrap(places, mean_of, n_resamples=RESAMPLES, batch=max(1, 2_000_000 // values.size),
                         vectorized=True, axis=-1, confidence_level=level, method="percentile",
                         rng=np.random.default_rng(0)).confidence_interval
    low, high = float(interval.low), float(interval.high)
    by_seed = values.mean(1)
    if np.ptp(by_seed) > 0:
        around = t.interval(level, seeds - 1, by_seed.mean(), by_seed.std(ddof=1) / np.sqrt(seeds))
        low, high = min(low, float(around[0])), max(high, float(around[1]))
        low, high = (low if ends[0] is None else max(ends[0], low),
                     high if ends[1] is None else min(ends[1], high))
    return float(values.mean()), low, high


# --- tests of a difference ----------------------------------------------------------------------------------

def permutation_p(first, second):
    """Two-sided p of no difference between two rows, for these seeds: both are swapped, an example in all
    seeds at once, since one example's answers hang together. Of one seed it is McNemar's test. Exact: the
    chance of every sum of signed differences is counted, examples that differ by as much at a time. Of
    squared errors, whose differences are no multiples of one number: by RESAMPLES random swaps."""
    from scipy.stats import binom
    sums = np.asarray(first, dtype=float).sum(0) - np.asarray(second, dtype=float).sum(0)
    if not sums.any():
        return 1.0
    if np.abs(12 * sums - np.rint(12 * sums)).max() > 1e-6:
        return random_swaps_p(sums)
    sums = np.rint(12 * sums).astype(int)  # whole numbers, for means over up to four rows too
    sums = sums[sums != 0] // np.gcd.reduce(sums)
    chances = np.ones(1)  # of the sums from -ends to ends
    for step, count in zip(*np.unique(np.abs(sums), return_counts=True)):
        signed = np.zeros(2 * step * count + 1)
        signed[::2 * step] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, signed)
    ends = len(chances) // 2
    return min(1.0, float(chances[np.abs(np.arange(-ends, ends + 1)) >= abs(sums.sum())].sum()))


@by_content
def random_swaps_p(differences):
    """Two-sided p of no difference, by random signs of (examples) differences."""
    from scipy.stats import permutation_test
    return float(permutation_test((differences, np.zeros_like(differences)),
                                  lambda x, y, axis: (x - y).sum(axis), permutation_type="samples",
                                  vectorized=True, n_resamples=RESAMPLES, batch=500, axis=-1,
                                  rng=np.random.default_rng(0)).pvalue)


def paired_t_p(first, second, counts=True):
    """Two-sided p of no difference between two rows, for these examples: Student's paired t over the seeds'
    scores; 1 of one seed. counts: rows of right answers, whose variance over seeds is taken to be at least
    that of rounding two counts to whole numbers: few seeds that agree to the example do not show that seeds
    make no difference."""
    from scipy.stats import t
    differences = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    seeds, examples = differences.shape
    if seeds < 2:
        return 1.0
    by_seed = differences.mean(1)
    variance = max(by_seed.var(ddof=1), 2 / 12 / examples ** 2 if counts else 0.0)
    if variance == 0:  # no seed differs from another at all
        return float(by_seed.mean() == 0)
    return float(2 * t.sf(abs(by_seed.mean()) / np.sqrt(variance / seeds), seeds - 1))


def corrected(p_values):
    """Holm's correction for the number of comparisons."""
    from statsmodels.stats.multitest import multipletests
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


# --- selection ----------------------------------------------------------------------------------------------

def expected_best(scores, looks):
    """Mean of the best of `looks` scores drawn from `scores` without replacement: what selecting among fewer
    looks would have kept."""
    from scipy.special import comb
    scores = np.sort(np.asarray(scores, dtype=float))
    looks = min(looks, len(scores))
    return float(scores @ (comb(np.arange(len(scores)), looks - 1) / comb(len(scores), looks)))


def count_wins(teacher, students):
    """In how many tasks the best of students is right more often than the teacher. teacher: right answers a
    task; students: those of each student."""
    return int(sum(max(student[task] for student in students) > right for task, right in enumerate(teacher)))


@by_content
def chance_of_wins(teacher, students):
    """Chance of at least as many wins as were found (count_wins) if teacher and students were exchangeable:
    their answers to each example are dealt out anew. It depends on which of them is best in a task, not on by
    how much, so that a spread over seeds leaves it right. Students that are more alike than that win less
    often. teacher: for each task (examples), right answers over seeds; students: such a list each."""
    from scipy.stats import permutation_test
    ends = np.cumsum([len(task) for task in teacher])
    columns = [np.concatenate(row) for row in (teacher, *students)]

    def wins(*columns, axis):
        sums = [np.stack([part.sum(-1) for part in np.split(column, ends[:-1], axis=-1)])
                for column in columns]
        return (np.max(sums[1:], axis=0) > sums[0]).sum(0)

    batch = min(500, max(1, 40_000_000 // (len(columns) * len(columns[0]))))  # of so many numbers at a time
    return permutation_test(columns, wins, permutation_type="samples", alternative="greater", vectorized=True,
                            axis=-1, n_resamples=RESAMPLES, batch=batch, rng=np.random.default_rng(0)).pvalue
