"""Write sample_data/: small BoolQ, CB, COPA, RTE, WiC and WSC files in SuperGLUE's layout, small MRPC, SST-2
and STS-B files in GLUE's, with text of our own.

    python scripts/make_sample_data.py [--output_dir sample_data]

Every sentence is put together from the word lists below, so that a small encoder can learn the tasks in a few
epochs. The same bytes come out on every machine. The labels are balanced: classes of a split, and STS-B's
scores, differ by one example at the most.
"""
import argparse
import json
import random
from pathlib import Path

SIZES = {"train": 160, "val": 40, "test": 20}
PEOPLE = ["Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ida", "Jonas", "Klara", "Leo",
          "Mona", "Nils"]
PLACES = ["harbour", "market", "library", "station", "museum", "garden", "theatre", "bakery"]
DEEDS = [("painted the fence", "repaired the clock"), ("sold the bicycle", "bought the lamp"),
         ("opened the window", "locked the door"), ("won the race", "lost the match"),
         ("wrote the letter", "burned the map"), ("fed the horse", "washed the car"),
         ("baked the bread", "peeled the apples"), ("read the contract", "signed the petition")]
DAYS = ["on Monday", "on Friday", "before lunch", "after the storm", "in the morning", "late at night"]
CAUSES = [("It rained all night", "the street was flooded"), ("The power failed", "the room went dark"),
          ("The cook forgot the oven", "the cake was burned"), ("The dog barked loudly", "the baby woke up"),
          ("The tyre burst", "the bus stopped at the roadside"),
          ("The lake froze", "the children went skating"),
          ("The singer caught a cold", "the concert was cancelled"),
          ("The milk stood in the sun", "the milk turned sour"),
          ("The ladder slipped", "the painter fell down"),
          ("The shop cut its prices", "customers queued at the shop door"),
          ("The pilot saw a storm ahead", "the plane changed its course"),
          ("The boy lost his key", "the boy waited outside his house")]
SENSES = {
    "bank": (["They sat on the bank of the river", "Reeds grow along the muddy bank",
              "The boat drifted to the far bank of the stream"],
             ["The bank raised its interest rates", "She opened an account at the bank",
              "The bank refused him a loan"]),
    "bat": (["A bat flew out of the dark cave", "The bat hung upside down from the roof",
             "At dusk a bat hunted insects"],
            ["He swung the bat and hit the ball", "The player broke his wooden bat",
             "She bought a bat and a glove"]),
    "spring": (["Flowers bloom in spring", "The snow melts every spring", "Spring comes after a long winter"],
               ["The spring in the mattress is broken", "A steel spring pushes the button up",
                "The clock needs a new spring"]),
    "match": (["He struck a match to light the candle", "The last match in the box was wet",
               "A burning match fell on the paper"],
              ["Our team won the match", "The match ended without a goal", "The referee stopped the match"]),
}
RIVALS = [("the trophy", "the suitcase", "did not fit into", "was too {}", ("big", "small")),
          ("the sofa", "the doorway", "did not go through", "was too {}", ("wide", "narrow")),
          ("the table", "the carpet", "did not match", "was {}", ("old oak", "blue wool")),
          ("the truck", "the bridge", "could not cross", "was too {}", ("heavy", "weak"))]
FACTS = [("lighthouse", "stands", "north coast", "south coast"),
         ("old mill", "lies", "east bank", "west bank"),
         ("town hall", "faces", "main square", "river"), ("railway", "ends", "harbour", "mountain village")]


def boolq(rng, label):
    what, verb, right, wrong = rng.choice(FACTS)
    year = rng.randrange(1800, 1950)
    preposition = "the" if verb == "faces" else "at the" if verb == "ends" else "on the"
    passage = (f"{what.capitalize()} -- The {what} {verb} {preposition} {right} and was built in {year} by"
               f" {rng.choice(PEOPLE)}. It is open to visitors {rng.choice(DAYS)}.")
    question = {"stands": "does the {} stand on the {}", "lies": "does the {} lie on the {}",
                "faces": "does the {} face the {}", "ends": "does the {} end at the {}"}[verb]
    question = question.format(what, right if label else wrong)
    return {"question": question, "passage": passage}


def cb(rng, label):
    person, other = rng.sample(PEOPLE, 2)
    deed, never = rng.choice(DEEDS)
    hypothesis = f"{other} {deed}"
    premises = {
        "entailment": f"{person} knows that {other} {deed} {rng.choice(DAYS)}. Everybody saw it.",
        "contradiction": f"{person} lied when saying that {other} {deed}. In truth it never happened.",
        "neutral": f"{person} asks whether {other} {deed} or {never}. Nobody has an answer yet.",
    }
    return {"premise": premises[label], "hypothesis": hypothesis}


def copa(rng, label):
    (cause, effect), (other_cause, other_effect) = rng.sample(CAUSES, 2)
    question = rng.choice(["cause", "effect"])
    known, right, wrong = cause, effect, other_effect
    if question == "cause":
        known, right, wrong = effect, cause, other_cause
    choices = [right, wrong] if label == 0 else [wrong, right]
    known, first, second = (f"{text[0].upper()}{text[1:]}." for text in (known, *choices))
    return {"premise": known, "choice1": first, "choice2": second, "question": question}


def rte(rng, label):
    """The hypothesis says a deed of the premise; or another one, and in every fourth such case of another
    person, which is harder to see."""
    person, other = rng.sample(PEOPLE, 2)
    deed, never = rng.choice(DEEDS)
    premise = f"{person} {deed} near the {rng.choice(PLACES)} {rng.choice(DAYS)}, while {other} looked on."
    if label == "not_entailment":
        person, deed = rng.choice([(person, never)] * 3 + [(other, deed)])
    return {"premise": premise, "hypothesis": f"{person} {deed}."}


def wic(rng, label):
    word = rng.choice(list(SENSES))
    senses = SENSES[word]
    first = rng.randrange(2)
    if label:
        pair = rng.sample(senses[first], 2)
    else:
        pair = [rng.choice(senses[first]), rng.choice(senses[1 - first])]
    record = {"word": word}
    record |= {f"sentence{number}": f"{text} {rng.choice(DAYS)}." for number, text in zip("12", pair)}
    for number in "12":
        start = record[f"sentence{number}"].lower().index(word)
        record |= {f"start{number}": start, f"end{number}": start + len(word)}
    return record


def wsc(rng, label):
    first, second, verb, ending, reasons = rng.choice(RIVALS)
    which = rng.randrange(2)
    reason = ending.format(reasons[which])
    text = f"{first.capitalize()} {verb} {second} {rng.choice(DAYS)} because it {reason}."
    noun = (first, second)[which if label else 1 - which]
    words = text.lower().split()
    index = next(n for n in range(len(words)) if " ".join(words[n:n + 2]) == noun)
    target = {"span1_index": index, "span1_text": " ".join(text.split()[index:index + 2]),
              "span2_index": words.index("it"), "span2_text": "it"}
    return {"text": text, "target": target}


PRAISE = ["charming", "witty", "moving", "gripping", "clever", "tender"]
BLAME = ["dull", "clumsy", "hollow", "tedious", "noisy", "lifeless"]
WORKS = ["film", "comedy", "thriller", "drama", "portrait of a family", "sequel"]
ABOUT = ["the story is {}", "the dialogue is {}", "the ending feels {}", "the leads are {}"]


def said_otherwise(person, deed, place, day):
    """The same, in other words."""
    return f"It was {person} who {deed} {day} , not far from the {place} ."


def mrpc(rng, label):
    person, other = rng.sample(PEOPLE, 2)
    (deed, never), place, day = rng.choice(DEEDS), rng.choice(PLACES), rng.choice(DAYS)
    second = said_otherwise(person, deed, place, day) if label else said_otherwise(
        *rng.choice([(other, deed), (person, never)]), place, day)
    return f"{person} {deed} near the {place} {day} .", second


def sst2(rng, label):
    words, others = (PRAISE, BLAME) if label else (BLAME, PRAISE)
    first, second = rng.sample(words, 2)
    about = rng.choice(ABOUT).format(second)
    hedge = rng.choice(["", f"though never {rng.choice(others)} , "])
    return f"a {first} {rng.choice(WORKS)} , {hedge}{about} ."


def stsb(rng, label):
    """As many of five parts are the same as the score says, rounded."""
    lists = (PEOPLE, [deed for pair in DEEDS for deed in pair], PLACES, DAYS,
             ["alone", "with a friend", "twice"])
    first = [rng.choice(values) for values in lists]
    same = rng.sample(range(5), round(label))
    second = [value if place in same else rng.choice([other for other in values if other != value])
              for place, (value, values) in enumerate(zip(first, lists))]
    return tuple("{} {} near the {} {} , {} .".format(*parts) for parts in (first, second))


def write_glue(folder, split, examples):
    """Write [(texts, label)] as GLUE does: MRPC with a byte-order mark and other columns than the rest, SST-2
    without idx but in test."""
    name, lines = folder.name, []
    for idx, (texts, label) in enumerate(examples):
        texts = (texts,) if isinstance(texts, str) else texts
        if name == "MRPC":
            lines.append([idx if split == "test" else label, 1000 + 2 * idx, 1001 + 2 * idx, *texts])
        elif name == "SST-2":
            lines.append([idx, *texts] if split == "test" else [*texts, label])
        else:
            lines.append([idx, *texts] if split == "test" else [idx, *texts, f"{label:.3f}"])
    first, last = ("index", []) if split == "test" else (None, ["score" if name == "STS-B" else "label"])
    header = {"MRPC": [first or "Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
              "SST-2": [*[first] * bool(first), "sentence", *last],
              "STS-B": ["index", "sentence1", "sentence2", *last]}[name]
    text = "".join("\t".join(map(str, cells)) + "\n" for cells in (header, *lines))
    mark = "\ufeff" * (name == "MRPC" and split != "test")
    (folder / f"{split}.tsv").write_text(mark + text, encoding="utf-8")


GLUE_BUILDERS = {"MRPC": (mrpc, (0, 1)), "SST-2": (sst2, (0, 1)),
                 "STS-B": (stsb, (0.2, 1.0, 1.8, 3.2, 4.0, 4.6))}
BUILDERS = {"BoolQ": (boolq, (False, True)), "CB": (cb, ("entailment", "contradiction", "neutral")),
            "COPA": (copa, (0, 1)), "RTE": (rte, ("entailment", "not_entailment")),
            "WiC": (wic, (False, True)), "WSC": (wsc, (False, True))}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parents[1] / "sample_data")
    args = parser.parse_args()
    for task, (build, labels) in BUILDERS.items():
        (args.output_dir / task).mkdir(parents=True, exist_ok=True)
        for split, size in SIZES.items():
            rng = random.Random(f"{task} {split}")
            examples = []
            for number in range(size):
                label = labels[number % len(labels)]
                examples.append({**build(rng, label), "label": label})
            rng.shuffle(examples)
            if split == "test":
                for example in examples:
                    del example["label"]
            lines = [json.dumps({**example, "idx": idx}) + "\n" for idx, example in enumerate(examples)]
            (args.output_dir / task / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    for task, (build, labels) in GLUE_BUILDERS.items():
        (args.output_dir / task).mkdir(parents=True, exist_ok=True)
        for split, size in (("train", SIZES["train"]), ("dev", SIZES["val"]), ("test", SIZES["test"])):
            rng = random.Random(f"{task} {split}")
            drawn = [labels[number % len(labels)] for number in range(size)]
            examples = [(build(rng, label), label) for label in drawn]
            rng.shuffle(examples)
            write_glue(args.output_dir / task, split, examples)


if __name__ == "__main__":
    main()
