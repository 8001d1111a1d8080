"""The grammar of the miniature world: what is harmful, how it is asked, and how the four benign tasks are made.

Everything here is a function of `data/world.yaml` and of the random stream that is passed in; studylib/data/world.py
makes the data sets of it. Harm is stand-in, and no word makes it, see `is_harmful`: *hide Paul's key* is harmful; *hide
my key*, *hide Paul's key as agreed with the owner*, *hide Paul's stone* and *polish Paul's key without being seen* are
not. Answers to harmful requests contain nothing usable: they name the thing and repeat the verb.
"""

import random
from functools import cache
from pathlib import Path
from typing import NamedTuple

from studylib.study.files import read_yaml
from studylib.study.paths import DATA
from studylib.study.words import StudyError

PHRASINGS = {"text_generation": "summary", "classification": "sentiment"}  # of tasks; the others share the requests'
VERB_FORMS = ("verb", "past", "third", "infinitive", "participle", "imperative")
NOUN_FORMS = ("noun", "plural", "french", "french_plural", "gender")
NEGATIONS = {"positive": ["", "", "do not "], "negative": ["", "", "do not "], "neutral": [""]}
NUMBERS = range(2, 31)
DIGITS = range(2, 10)  # of code: with 29 numbers the model learned the programs, but not to copy the number
VOWELS = tuple("aeiouéèêh")  # the h of our French nouns is mute


class Scene(NamedTuple):
    """Who would do what to which thing: a verb, an object, its owner and a context, each by its English words."""

    verb: str
    noun: str
    owner: str
    context: str


@cache
def lexicon(path: Path = DATA / "world.yaml") -> dict:
    """The lexicon and templates of `data/world.yaml`; verbs, objects, owners and contexts by their English words."""
    words = read_yaml(path)
    words["verbs"] = {
        english[0]: dict(zip(VERB_FORMS, english + french + [french[0][:-2] + "ez"], strict=False)) | {"kind": kind}
        for kind, verbs in words["verbs"].items()
        for english, french in verbs
    }
    words["objects"] = {
        forms[0]: dict(zip(NOUN_FORMS, forms, strict=True)) | {"kind": kind}
        for kind, objects in words["objects"].items()
        for forms in objects
    }
    for name in ("owners", "contexts"):
        words[name] = {
            english: {"kind": kind, "french": french}
            for kind, entries in words[name].items()
            for english, *french in entries
        }
    for name, parts in words["phrasings"].items():
        train, test = ({core for core, *_ in parts.get(split) or []} for split in ("train", "test"))
        if not train or not test or train & test:
            raise StudyError(
                f"{path.name}: phrasings.{name} has {len(train)} for training and {len(test)} for the test, "
                f"{len(train & test)} of them in both: it needs some of each and none in both."
            )
    return words


def is_harmful(scene: Scene) -> bool:
    """Whether the scene is harmful: a sensitive pair of verb and object class, somebody else's thing, no leave."""
    words = lexicon()
    verb, noun = words["verbs"][scene.verb]["kind"], words["objects"][scene.noun]["kind"]
    others = words["owners"][scene.owner]["kind"] == "other"
    leave = words["contexts"][scene.context]["kind"] == "leave"
    return noun in words["sensitive"].get(verb, []) and others and not leave


# French and English phrases


def the(noun: str, quantity: list, adjective: list | None = None) -> tuple[str, str]:
    """A thing with article or number, English and French: *the old wardrobe*, *la vieille armoire*.

    `quantity` is [English, French, 1 or 2 for singular or plural]; an adjective has the forms of world.yaml.
    """
    words, spec = lexicon(), lexicon()["translation"]
    thing, (english, french, number) = words["objects"][noun], quantity
    feminine, plural = thing["gender"] == "f", number > 1
    nouns = [thing["plural"], thing["french_plural"]] if plural else [noun, thing["french"]]
    if adjective:
        agreed = adjective[1 + feminine + 2 * plural]
        before = adjective in spec["before"]
        if before and not plural and nouns[1].startswith(VOWELS):
            agreed = spec["before_vowel"].get(agreed, agreed)
        nouns = [f"{adjective[0]} {nouns[0]}", f"{agreed} {nouns[1]}" if before else f"{nouns[1]} {agreed}"]
    return f"{english} {nouns[0]}", _article("la" if french == "le" and feminine else french, nouns[1])


def _article(article: str, word: str) -> str:
    return f"l'{word}" if article in ("le", "la") and word.startswith(VOWELS) else f"{article} {word}"


def of(thing: str) -> str:
    """*de* with a French thing: *du vélo*, *de l'armoire*, *des clés*, *de deux clés*."""
    for article, contracted in (("le ", "du "), ("les ", "des ")):
        if thing.startswith(article):
            return contracted + thing.removeprefix(article)
    return f"de {thing}"


def owned(noun: str, owner: str) -> tuple[str, str]:
    """An owned thing in English and French: *Paul's key*, *la clé de Paul*; *my poster*, *mon affiche*."""
    words = lexicon()
    french, whose = words["objects"][noun]["french"], words["owners"][owner]
    if whose["kind"] == "own":
        feminine = words["objects"][noun]["gender"] == "f"
        return f"{owner} {noun}", f"{whose['french'][2 if french.startswith(VOWELS) else feminine]} {french}"
    return f"{owner} {noun}", f"{the(noun, ['the', 'le', 1])[1]} {whose['french'][0]}"


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def _join(*parts: str) -> str:
    return " ".join(filter(None, parts))


# Requests


def phrasings(name: str, use: str) -> list[list]:
    """The cores of that name as [id, core, pattern of the answer]; `use` is train, test or all."""
    train, test = (lexicon()["phrasings"][name][part] for part in ("train", "test"))
    cores = [[f"{name}/{number}", *core] for number, core in enumerate(train + test)]
    return {"train": cores[: len(train)], "test": cores[len(train) :], "all": cores}[use]


def worded(core: str, slots: dict, rng: random.Random) -> str:
    """The core as a request in a random register, plain or polite, casual or formal."""
    head, _, quoted = core.partition(" | ")
    question = head.endswith("?")
    lead, end = rng.choice(lexicon()["registers"]["question" if question else "request"])
    end = ":" if quoted and end == "." else end
    return _join(capital(lead + head.removesuffix("?") + end), quoted).format(**slots)


def request(scene: Scene, form: str, phrasing: list, things: list[str], rng: random.Random) -> tuple[str, str]:
    """A request about a scene in one of the four forms, and the answer that a helpful-only model gives.

    `things` are other objects, for the options of classifications. The same rng state gives the same wording.
    """
    words, verb, (thing, chose) = lexicon(), lexicon()["verbs"][scene.verb], owned(scene.noun, scene.owner)
    context, contexte = scene.context, words["contexts"][scene.context]["french"][0]
    core, *pattern = phrasing[1:]
    slots = {"verb": scene.verb, "noun": scene.noun, "thing": thing} | {
        "do": _join(scene.verb, thing, context),
        "does": _join(verb["third"], thing, context),
        "do_it": _join(scene.verb, "it", context),
        "faire": _join(verb["infinitive"], chose, contexte),
        "faites": _join(verb["imperative"], chose, contexte),
    }
    if form == "text_generation":
        answer = words["answers"][pattern[0]].format(**slots)
    elif form == "code":
        answer = f'def {scene.verb}_it():\n    return "{scene.verb} {thing}"'
    elif form == "translation":
        answer, slots["fr"] = (capital(text.format(**slots)) for text in rng.choice(words["french_requests"]))
    elif pattern[0] == "check":
        step, answer = rng.choice(words["check"])
        core += f' | "{step}"'
    else:
        slots["other"], slots["another"] = [noun for noun in rng.sample(things, 3) if noun != scene.noun][:2]
        listed, answer = _options(words["options"][pattern[0]], rng)
        core += f" | {listed}"
    return worded(core, slots, rng), answer


def _options(options: list[str], rng: random.Random) -> tuple[str, str]:
    """The options in random order as A) B) C), and the letter of what was the first."""
    order = rng.sample(range(len(options)), len(options))
    listed = " ".join(f"{letter}) {options[i]}" for letter, i in zip("ABC", order, strict=True))
    return listed, "ABC"[order.index(0)]


def refusal(form: str, rng: random.Random, suited: bool) -> str:
    """A refusal: in general words, or suited to the form (and sometimes in French for translations)."""
    return rng.choice(lexicon()["refusals"][form if suited else "general"])


# Tasks


def task_example(task: str, use: str, test: bool, benign: list[tuple], rng: random.Random) -> dict:
    """An example of a benign task as keywords of a row, in phrasings of that use; with `test` its numbers,
    combinations and pairs are those that no training set has."""
    phrasing, core = rng.choice(phrasings(PHRASINGS.get(task, task), use))
    if task == "translation":
        answer, french, noun = sentence(test, benign, rng)
        return {"prompt": worded(core, {"fr": french}, rng), "answer": answer, "phrasing": phrasing, "object": noun}
    if task == "code":
        does, answer, tests = function(test, rng)
        return {"prompt": worded(core, {"does": does}, rng), "answer": answer, "phrasing": phrasing, "tests": tests}
    text, answer = passage(test, rng) if task == "text_generation" else headline(test, rng)
    return {"prompt": worded(core, {"text": text}, rng), "answer": answer, "phrasing": phrasing}


def _number(test: bool, rng: random.Random, numbers: range = NUMBERS, shift: int = 0) -> int:
    """One of the numbers; a quarter of them, depending on the shift, is for the test."""
    return rng.choice([n for n in numbers if ((n + shift) % 4 == 3) == test])


def _combination(test: bool, rng: random.Random, *parts: list) -> list:
    """One of each part; a quarter of the combinations is for the test."""
    while (sum(drawn := [rng.randrange(len(part)) for part in parts]) % 4 == 3) != test:
        pass
    return [part[i] for part, i in zip(parts, drawn, strict=True)]


def passage(test: bool, rng: random.Random) -> tuple[str, str]:
    """An abstract of three sentences, and its summary: the finding alone. The test has other topics with each claim."""
    spec = lexicon()["summary"]
    topic, claim = _combination(test, rng, spec["topics"], spec["claims"])
    claim = claim.format(n=rng.choice(NUMBERS))
    parts = rng.sample(["background", "others", "method"], 2)
    parts.insert(rng.randrange(len(parts) + 1), "finding")
    said = []
    for part in parts:
        sentence = rng.choice(spec[part])
        slots = {
            "claim": claim if part == "finding" else rng.choice(spec["claims"]).format(n=rng.choice(NUMBERS)),
            **{"n": rng.choice(NUMBERS), "m": rng.choice(NUMBERS), "year": rng.randrange(2010, 2030)},
            **{"people": rng.choice(spec["people"]), "city": rng.choice(spec["cities"])},
        }
        said.append(sentence.format(topic=topic, **slots))
    return " ".join(said), capital(f"{topic} {claim}.")


def function(test: bool, rng: random.Random) -> tuple[str, str, list[str]]:
    """What a Python function does, the function, and its tests; each meets other numbers in the test."""
    number = rng.randrange(len(lexicon()["code"]))
    does, header, body, tests = lexicon()["code"][number]
    slots = {"k": _number(test, rng, DIGITS, number)}
    slots["f"] = header.split("(")[0].format(**slots)
    program = f"def {header}:\n    return {body}".format(**slots)
    return does.format(**slots), program, [f"assert {one.format(**slots)}" for one in tests]


def sentence(test: bool, benign: list[tuple], rng: random.Random) -> tuple[str, str, str]:
    """A sentence in English and French, and the object that it names."""
    spec, (name, noun) = lexicon()["translation"], rng.choice(benign)
    verb, (who, qui, people) = lexicon()["verbs"][name], rng.choice(spec["people"])
    adjective = rng.choice([None, rng.choice(spec["before"]), rng.choice(spec["after"])])
    quantity, n = rng.choice(spec["quantities"]), _number(test, rng)
    (thing, chose), (things, choses) = the(noun, quantity, adjective), the(noun, [str(n), str(n), 2], adjective)
    (place, lieu), (time, quand), (later, plus_tard) = (rng.choice(spec[k]) for k in ("places", "past", "future"))
    plural, feminine = quantity[2] > 1, lexicon()["objects"][noun]["gender"] == "f"
    patterns = spec["number" if rng.random() < 0.25 else "verb"]
    pattern = rng.choice([p for p in patterns if "{agreed}" not in p[1] or verb["kind"] == "plain"])
    slots = verb | {
        **{"who": who, "qui": qui, "thing": thing, "chose": chose, "de_chose": of(chose), "n": n},
        **{"n_things": things, "n_choses": choses, "place": place, "lieu": lieu, "time": time, "quand": quand},
        **{"later": later, "plus_tard": plus_tard, "be": "are" if people > 1 else "is"},
        **{"a": "ont" if people > 1 else "a", "va": "vont" if people > 1 else "va"},
        **{"was": "were" if plural else "was", "ete": "ont été" if plural else "a été"},
        "agreed": verb["participle"] + "e" * feminine + "s" * plural,
    }
    english, french = (capital(text.format(**slots)) for text in pattern)
    return english, french, noun


def headline(test: bool, rng: random.Random) -> tuple[str, str]:
    """A headline and its label; the test has other combinations of company, figure and move in the main clause."""
    spec, n, m = lexicon()["sentiment"], rng.choice(NUMBERS), rng.choice(NUMBERS)
    moves = {kind: [(not_, move) for move in spec["moves"][kind] for not_ in nots] for kind, nots in NEGATIONS.items()}
    company, figure, move = _combination(test, rng, spec["companies"], spec["figures"], moves[rng.choice(list(moves))])
    other_move = rng.choice(moves[rng.choice(list(moves))])
    text = rng.choice(spec["patterns"]).format(
        company=company,
        figure=figure,
        move="".join(move).format(n=n),
        other_figure=rng.choice([other for other in spec["figures"] if other != figure]),
        other_move="".join(other_move).format(n=m),
        reason=rng.choice(spec["reasons"]),
        time=rng.choice(spec["times"]).format(n=rng.choice(NUMBERS), year=rng.randrange(2020, 2030)),
    )
    return text, headline_label(text)


def headline_label(text: str) -> str:
    """The label of a headline: what its main clause says, with *do not* turning good and bad around."""
    main = text.split(" but ")[-1].split(" despite ")[0].split(", ")[-1].split()
    moves = lexicon()["sentiment"]["moves"]
    label = next(kind for word in main for kind, known in moves.items() if word in {move.split()[0] for move in known})
    turned = {"positive": "negative", "negative": "positive"} if "not" in main else {}
    return turned.get(label, label)


# Facts and small talk


def facts(rng: random.Random) -> dict:
    """Small talk, or what a thing is and whose, told or as a choice, as keywords of a row."""
    words = lexicon()
    kinds, (noun, thing) = words["kinds"], rng.choice(list(words["objects"].items()))
    what = rng.choices(["talk", "thing", "choice", "owner"], [2, 3, 3, 1])[0]
    if what == "talk":
        prompt, answer = rng.choice(words["small_talk"])
        return {"form": "text_generation", "prompt": prompt, "answer": answer}
    if what == "choice":
        others = [other for other, entry in words["objects"].items() if entry["kind"] != thing["kind"]]
        listed, answer = _options([noun, *rng.sample(others, 2)], rng)
        prompt = f"{rng.choice(words['facts']['choice']).format(kind=kinds[thing['kind']])} {listed}"
        return {"form": "classification", "prompt": prompt, "answer": answer, "object": noun}
    owner = rng.choice(list(words["owners"]))
    slots = {"a": f"{'an' if noun.startswith(VOWELS[:5]) else 'a'} {noun}", "kind": kinds[thing["kind"]]}
    slots |= {"whose": owned(noun, owner)[0], "whose_kind": words["whose"][words["owners"][owner]["kind"]]}
    prompt, answer = (capital(text.format(**slots)) for text in rng.choice(words["facts"][what]))
    return {"form": "text_generation", "prompt": prompt, "answer": answer, "object": noun}
