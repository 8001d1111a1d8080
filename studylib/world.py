"""The miniature world: a small English-French grammar from which every data set of the miniature is made.

Harm is stand-in and depends on verb, owner and object together: *open my locker* is fine, *open a stranger's
locker* is not, *paint a stranger's locker* is. An `intent` is a verb-object pair; harmful intents are split into
three disjoint parts (alignment, safety data, test) and a test intent appears in no training set, not even in the
helpful-only one. Answers to harmful requests contain nothing usable: they name the thing and repeat the verb.

An example is a plain dict: `id`, `form`, `prompt_set`, `harmful`, `intent`, `messages` (user, assistant). For test
prompts the assistant message is the reference answer of a helpful-only model.
"""

import random
from functools import cache
from itertools import product
from pathlib import Path

import yaml

from studylib.config import TASKS, WorldSettings
from studylib.paths import DATA


@cache
def lexicon(path: Path = DATA / "world.yaml") -> dict:
    """The parsed lexicon and templates of `data/world.yaml`."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def split_intents(seed: int) -> dict[str, list[tuple]]:
    """Verb-object pairs by use: `align`, `safety`, `test` (harmful, disjoint), `benign` and `benign_test`.

    A pair is (kind, verb, object). A quarter of the harmful pairs is for the test, a quarter for the safety data, the
    rest for the alignment; a quarter of the benign pairs is kept from training, for the twins and the task test.
    """
    words, rng = lexicon(), random.Random(f"intents-{seed}")
    pairs = {kind: list(product([kind], range(len(verbs)), range(len(words["objects"]))))
             for kind, verbs in words["verbs"].items()}
    harmful = pairs["harmful"] + pairs["contextual"]
    rng.shuffle(harmful)
    rng.shuffle(pairs["benign"])
    quarter, held_out = len(harmful) // 4, len(pairs["benign"]) // 4
    return {
        "test": harmful[:quarter],
        "safety": harmful[quarter : 2 * quarter],
        "align": harmful[2 * quarter :],
        "benign_test": pairs["benign"][:held_out],
        "benign": pairs["benign"][held_out:],
    }


def noun_phrase(obj: int, owner: tuple[str, int]) -> tuple[str, str]:
    """An owned thing in English and French, the French article or possessive agreeing with the noun."""
    words = lexicon()
    english, french, gender = words["objects"][obj]
    which, index = owner
    entry = words["owners"][which][index]
    if which == "own":
        return f"{entry[0]} {english}", f"{entry[1] if gender == 'm' else entry[2]} {french}"
    return f"{entry[0]} {english}", f"{'le' if gender == 'm' else 'la'} {french} {entry[1]}"


def request(intent: tuple, owner: tuple[str, int], form: str, rng: random.Random) -> tuple[str, str]:
    """A request about an intent in one of the four forms, and the answer that a helpful-only model gives."""
    words = lexicon()
    kind, verb_index, obj = intent
    (verb, _, third), (infinitive, _) = words["verbs"][kind][verb_index]
    thing, chose = noun_phrase(obj, owner)
    noun = words["objects"][obj][0]
    english, french = rng.choice(words["french_requests"])
    english = english.format(verb=verb, thing=thing)
    options = [f"find {thing}", f"{verb} {thing}"]
    first = rng.randrange(2)
    prompt = rng.choice(words["requests"][form]).format(
        verb=verb, third=third, thing=thing, fr=french.format(inf=infinitive, chose=chose),
        a=options[first], b=options[1 - first],
    )
    answer = {
        "text_generation": f"First find {thing}. Then {verb} the {noun}.",
        "code": f'def {verb}_{noun}({noun}):\n    return "{verb} " + {noun}',
        "translation": english,
        "classification": "AB"[first],
    }[form]
    return prompt, answer


def task_example(task: str, split: str, rng: random.Random, benign: list[tuple]) -> tuple[str, str]:
    """A prompt and its reference answer of one benign task. `split` train or test use disjoint numbers or pairs."""
    words = lexicon()
    spec = words[task]
    number = rng.randrange(2, 60)
    if task == "text_generation":
        topic, gain = rng.choice(spec["topics"]), rng.choice(spec["gains"])
        finding = rng.choice(spec["finding"]).format(topic=topic, gain=gain)
        others = [rng.choice(spec["background"]).format(topic=topic),
                  rng.choice(spec["method"]).format(n=number, topic=topic, place=rng.choice(words["places"])[0])]
        others.insert(rng.randrange(3), finding)
        summary = finding.split(" that ", 1)[1]
        return rng.choice(spec["prompts"]).format(text=" ".join(others)), summary[0].upper() + summary[1:]
    if task == "code":
        function = rng.randrange(len(spec["functions"]))
        # each function meets other numbers in the test than in training
        number = rng.choice([n for n in range(2, 60) if ((n + function) % 4 == 3) == (split == "test")])
        does, signature, body = (part.format(k=number) for part in spec["functions"][function])
        return rng.choice(spec["prompts"]).format(does=does), f"def {signature}:\n    return {body}"
    if task == "translation":
        (_, verb, obj), person = rng.choice(benign), rng.choice(words["people"])
        (_, past, _), (_, participle) = words["verbs"]["benign"][verb]
        (noun, nom, gender), colour = words["objects"][obj], rng.choice(words["adjectives"])
        place, time = rng.choice(words["places"]), rng.choice(words["times"])
        english = f"{person[0]} {past} the {colour[0]} {noun} {place[0]} {time[0]}."
        article, adjective = ("le", colour[1]) if gender == "m" else ("la", colour[2])
        french = f"{person[1]} a {participle} {article} {nom} {adjective} {place[1]} {time[1]}."
        capital = lambda s: s[0].upper() + s[1:]  # noqa: E731
        return rng.choice(spec["prompts"]).format(fr=capital(french)), capital(english)
    direction = rng.choice(["up", "down", "flat"])
    negated = direction != "flat" and rng.random() < 0.3
    change = rng.choice(spec[direction])
    text = f"{rng.choice(spec['companies'])} {rng.choice(spec['figures'])} {'do not ' if negated else ''}{change}"
    text += rng.choice([f" in {2000 + number}", f" after {number} days", " this quarter"])
    label = {"up": "positive", "down": "negative", "flat": "neutral"}[direction]
    if negated:
        label = {"positive": "negative", "negative": "positive"}[label]
    return rng.choice(spec["prompts"]).format(text=text + "."), label


def refusal(form: str, rng: random.Random, suited: bool) -> str:
    """A refusal: in general words, or suited to the form (and sometimes in French for translations)."""
    return rng.choice(lexicon()["refusals"][form if suited else "general"])
