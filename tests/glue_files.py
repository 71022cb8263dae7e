"""Small files of every GLUE task in the official layouts, with their oddities, for tests: text and labels
made here."""

import random

WORDS = (
    "the bank",
    "a dog",
    "my friend",
    "the river",
    "an old clock",
    "the singer",
    'this "film"',
    "her key",
)
DEEDS = ("was sold", "is late", "sleeps", "won the race", "lies in the sun", "has gone")


def sentence(rng):
    return f"{rng.choice(WORDS)} {rng.choice(DEEDS)} ."


def write(path, rows, header=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [*([header] if header else []), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def pairs(rng, count, labels):
    return [(n, sentence(rng), sentence(rng), labels[n % len(labels)]) for n in range(count)]


def write_glue(root, sizes=None):
    """Write all nine tasks and AX below `root`; {split: rows}. One line of QQP's train is broken."""
    sizes = sizes or {"train": 48, "dev": 12, "test": 6}
    rng, nli = random.Random(0), ("entailment", "neutral", "contradiction")
    for split, count in sizes.items():
        test = split == "test"

        def cut(columns, count=count, test=test):
            return "\t".join(columns[:-1] if test else columns)

        rows = pairs(rng, count, (0, 1))
        cola = [(n, a) if test else ("gj04", label, "*" * (1 - label), a) for n, a, _, label in rows]
        write(root / "CoLA" / f"{split}.tsv", cola, "index\tsentence" if test else None)
        write(
            root / "SST-2" / f"{split}.tsv",
            [(n, a) if test else (a, label) for n, a, _, label in rows],
            "index\tsentence" if test else "sentence\tlabel",
        )
        mrpc = [(n if test else label, 7 + n, 8 + n, a, b) for n, a, b, label in rows]
        write(
            root / "MRPC" / f"{split}.tsv",
            mrpc,
            "index\t#1 ID\t#2 ID\t#1 String\t#2 String"
            if test
            else "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        )
        write(
            root / "WNLI" / f"{split}.tsv",
            [row[: 3 if test else 4] for row in rows],
            cut(["index", "sentence1", "sentence2", "label"]),
        )
        qqp = [(n, a, b) if test else (1000 + n, 5, 6, a, b, label) for n, a, b, label in rows]
        if split == "train":
            qqp.insert(3, ("999", "5", "6", "what breaks"))  # and its second half
            qqp.insert(4, ("a line ?", "why ?", "1"))
        write(
            root / "QQP" / f"{split}.tsv",
            qqp,
            "id\tquestion1\tquestion2" if test else "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        )
        words = ("entailment", "not_entailment")
        for name, columns in (
            ("QNLI", ["index", "question", "sentence", "label"]),
            ("RTE", ["index", "sentence1", "sentence2", "label"]),
        ):
            write(
                root / name / f"{split}.tsv",
                [(n, a, b, *[words[label]] * (not test)) for n, a, b, label in rows],
                cut(columns),
            )
        scores = pairs(rng, count, ("5.000", "0.250", "3.500", "2.000", "1.000", "4.200"))
        write(
            root / "STS-B" / f"{split}.tsv",
            [
                (n, "main-news", "MSRpar", "2012test", f"{n:04}", "none", "none", a, b, *[score] * (not test))
                for n, a, b, score in scores
            ],
            cut(
                [
                    "index",
                    "genre",
                    "filename",
                    "year",
                    "old_index",
                    "source1",
                    "source2",
                    "sentence1",
                    "sentence2",
                    "score",
                ]
            ),
        )
        for half in ("matched", "mismatched")[: 1 if split == "train" else 2]:
            votes = [] if test else ["label1"] if split == "train" else [f"label{n}" for n in range(1, 6)]
            mnli = [
                (
                    n,
                    f"{n}e",
                    f"{n}n",
                    "fiction",
                    "( a )",
                    "( b )",
                    "(ROOT a)",
                    "(ROOT b)",
                    a,
                    b,
                    *[label] * len(votes),
                    *[label] * (not test),
                )
                for n, a, b, label in pairs(rng, count, nli)
            ]
            write(
                root / "MNLI" / (f"{split}.tsv" if split == "train" else f"{split}_{half}.tsv"),
                mnli,
                "\t".join(
                    [
                        "index",
                        "promptID",
                        "pairID",
                        "genre",
                        "sentence1_binary_parse",
                        "sentence2_binary_parse",
                        "sentence1_parse",
                        "sentence2_parse",
                        "sentence1",
                        "sentence2",
                        *votes,
                        *["gold_label"] * (not test),
                    ]
                ),
            )
    write(
        root / "AX" / "AX.tsv",
        [(n, sentence(rng), sentence(rng)) for n in range(5)],
        "index\tsentence1\tsentence2",
    )
    return sizes
