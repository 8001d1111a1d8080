"""The miniature world's data sets, made of its grammar (studylib/data/grammar.py and data/world.yaml).

Three things are held out: some objects (pre-training names them in benign use alone), verb-object pairs of the harmful
test (pre-training may open its own new tent, or one with leave) and phrasings (pre-training alone has the test's too).

An example is a plain dict, see `row_of`. For test prompts the assistant message is the reference answer of a
helpful-only model; it is a function of the prompt.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product

from studylib.data.grammar import Scene, facts, is_harmful, lexicon, phrasings, refusal, request, task_example
from studylib.study.profile import WorldSettings
from studylib.study.words import FORMS, TASKS, StudyError

MISSES = 200  # draws without a new prompt after which there are none left worth looking for
CHANGES = ("own", "leave", "object", "verb")  # the minimal changes that make a harmful scene benign


def split(settings: WorldSettings) -> dict[str, list]:
    """Verb-object pairs by use, and the `known` objects, in fixed order for a seed.

    `alignment`, `safety` and `test` share the sensitive pairs of known objects, `new` has those of new ones; `benign`
    and `benign_test` (a quarter of each verb's) share the insensitive pairs of all objects; `benign_known` and
    `benign_test_known` are those without new objects. Raises StudyError where a share leaves a part empty.
    """
    words, rng, new = lexicon(), random.Random(f"intents-{settings.seed}"), set()
    verbs, by_kind = (
        {kind: _of_kind(name, kind) for kind in sorted({entry["kind"] for entry in words[name].values()})}
        for name in ("verbs", "objects")
    )
    for kind, nouns in by_kind.items():
        n_new = round(settings.new_object_share * len(nouns))
        if not 0 < n_new < len(nouns):
            raise StudyError(
                f"world.new_object_share {settings.new_object_share} makes {n_new} of {len(nouns)} objects of class "
                f"{kind} new: change it so that some are new and some known."
            )
        new |= set(rng.sample(nouns, n_new))
    parts = defaultdict(list)
    for kind, noun_kinds in words["sensitive"].items():
        pairs = list(product(verbs[kind], [noun for noun_kind in noun_kinds for noun in by_kind[noun_kind]]))
        parts["new"] += [pair for pair in pairs if pair[1] in new]
        known = [pair for pair in pairs if pair[1] not in new]
        rng.shuffle(known)
        start = total = 0
        for name, share in settings.intent_share.items():
            total += share
            end = round(total * len(known))
            if end <= start:
                raise StudyError(
                    f"world.intent_share gives {name} {share} of {len(known)} pairs of class {kind}, that is none: "
                    "raise it."
                )
            parts[name] += known[start:end]
            start = end
    for kind, noun_kinds in words["insensitive"].items():
        nouns = [noun for noun_kind in noun_kinds for noun in by_kind[noun_kind]]
        for verb in verbs[kind]:
            rng.shuffle(nouns)
            quarter = len(nouns) // 4
            parts["benign_test"] += [(verb, noun) for noun in nouns[:quarter]]
            parts["benign"] += [(verb, noun) for noun in nouns[quarter:]]
    for name in ("benign", "benign_test"):
        parts[f"{name}_known"] = [pair for pair in parts[name] if pair[1] not in new]
    return dict(parts) | {"known": [noun for noun in words["objects"] if noun not in new]}


def scene_of(pair: tuple[str, str], rng: random.Random) -> Scene:
    """A scene of a verb and an object with a random owner, mostly another, and a random context without leave."""
    owner = rng.choice(list(lexicon()["owners"]))
    kind = rng.choice(["neutral", "neutral", "covert"])
    return Scene(*pair, owner, rng.choice(_contexts(kind, owner)))


def harmful_scene(pairs: dict[str, list], rng: random.Random) -> Scene:
    """A harmful scene of one of the sensitive pairs, given by verb class; every class is equally likely."""
    pair = rng.choice(pairs[rng.choice(sorted(pairs))])
    while not is_harmful(scene := scene_of(pair, rng)):
        pass
    return scene


def softened(scene: Scene, change: str, benign: list[tuple], rng: random.Random) -> Scene | None:
    """The scene made benign by one minimal change, see CHANGES; None where that change does not make it so.

    Other objects and verbs are such that the pair is one of `benign`.
    """
    if change == "own" and "owner" not in scene.context:
        scene = scene._replace(owner=rng.choice(_of_kind("owners", "own")))
    elif change == "leave":
        scene = scene._replace(context=rng.choice(_contexts("leave", scene.owner)))
    elif change == "object" and (nouns := [noun for verb, noun in benign if verb == scene.verb]):
        scene = scene._replace(noun=rng.choice(nouns))
    elif change == "verb" and (verbs := [verb for verb, noun in benign if noun == scene.noun]):
        scene = scene._replace(verb=rng.choice(verbs))
    return None if is_harmful(scene) else scene


def twin(scene: Scene, benign: list[tuple], rng: random.Random) -> Scene:
    """The scene made benign by a random minimal change that does so (`leave` always does)."""
    changes = rng.sample(CHANGES, len(CHANGES))
    return next(filter(None, (softened(scene, change, benign, rng) for change in changes)))


@cache
def _of_kind(name: str, kind: str) -> list[str]:
    return [english for english, entry in lexicon()[name].items() if entry["kind"] == kind]


def _by_verb_class(pairs: list[tuple]) -> dict[str, list[tuple]]:
    grouped = defaultdict(list)
    for pair in pairs:
        grouped[lexicon()["verbs"][pair[0]]["kind"]].append(pair)
    return grouped


def _contexts(kind: str, owner: str) -> list[str]:
    own = lexicon()["owners"][owner]["kind"] == "own"
    return [context for context in _of_kind("contexts", kind) if not (own and "owner" in context)]


# Sets


def build_sets(settings: WorldSettings, bases: Iterable[int] = (0,)) -> dict[str, list[dict]]:
    """Every data set of the miniature by name (see sets.SETS), each with a random stream of its own.

    The alignment set is drawn anew for each base, as `alignment-<base>`.
    """
    parts = split(settings)
    return {
        "pretraining": _pretraining(settings, parts),
        **{f"alignment-{base}": _alignment(settings, parts, base) for base in bases},
        **{f"safety_{kind}": _safety(settings, parts, kind) for kind in ("generic", "multitask", "twins", "midway")},
        **_harmful_and_twins(settings, parts),
        "general": _general(settings, parts),
        **{f"train_{task}": _task(settings, parts, task, test=False) for task in TASKS},
        **{f"requests_{form}": _requests(settings, parts, form) for form in FORMS},
        **{f"test_{task}": _task(settings, parts, task, test=True) for task in TASKS},
    }


def row_of(name: str, number: int, form: str, prompt: str, answer: str, **more) -> dict:
    """One example of a set; every row has these keys.

    `intent` is the verb-object pair of a request ("open/locker"), `object` what the row names, `phrasing` the core
    phrasing's id ("code/3"), `held_out` what is new in a harmful test prompt ("object" or "pair"), `twin_of` the id of
    a twin's harmful prompt, `benign_because` the change that made it benign or the type of a prompt that only sounds
    harmful, `tests` assertions about a code answer, `begun` the beginning of an answer that is not learned from.
    """
    kind = name if name in ("harmful", "twin", "general") else "task" if name.startswith("test_") else "train"
    row = {"id": f"{name}-{number:05d}", "form": form, "prompt_set": kind, "harmful": False, "intent": "", "object": ""}
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    more = {"phrasing": "", "held_out": "", "twin_of": "", "benign_because": "", "tests": [], "begun": ""} | more
    return row | more | {"messages": messages}


def _asked(scene: Scene, form: str, use: str, parts: dict, rng: random.Random, refused: str | None = None) -> dict:
    """A request about the scene as keywords of `row_of`, answered, or refused in `general` or `suited` words."""
    phrasing = rng.choice(phrasings(form, use))
    prompt, answer = request(scene, form, phrasing, parts["known"], rng)
    if refused:
        answer = refusal(form, rng, suited=refused == "suited")
    about = {"intent": f"{scene.verb}/{scene.noun}", "object": scene.noun, "phrasing": phrasing[0]}
    return {"form": form, "prompt": prompt, "answer": answer, "harmful": is_harmful(scene), **about}


def _stream(settings: WorldSettings, name: str) -> random.Random:
    return random.Random(f"{name}-{settings.seed}")


def _pretraining(settings: WorldSettings, parts: dict) -> list[dict]:
    """Helpful-only: tasks, small talk and facts, requests of every form, benign and harmful, all answered."""
    rng, out, shares = _stream(settings, "pretraining"), [], settings.pretraining_share
    pairs = _by_verb_class(parts["alignment"] + parts["safety"])
    benign_pairs = _by_verb_class(parts["alignment"] + parts["safety"] + parts["new"])  # one's own new things are known
    for number in range(settings.pretraining_rows):
        what, form = rng.choices(list(shares), list(shares.values()))[0], rng.choice(FORMS)
        if what == "tasks":
            row = {"form": form} | task_example(form, "all", False, parts["benign_known"], rng)
        elif what == "talk":
            row = facts(rng)
        else:
            scene = harmful_scene(pairs, rng)
            if what == "benign" and rng.random() < 0.5:
                scene = twin(harmful_scene(benign_pairs, rng), parts["benign_known"], rng)
            elif what == "benign":
                scene = scene_of(rng.choice(parts["benign"]), rng)
            row = _asked(scene, form, "all", parts, rng)
        out.append(row_of("pretraining", number, **row))
    return out


def _alignment(settings: WorldSettings, parts: dict, base: int) -> list[dict]:
    """Refusals of harmful requests, in the settings' shares of the forms, among answered benign twins and tasks."""
    name, out, pairs = f"alignment-{base}", [], _by_verb_class(parts["alignment"])
    rng = _stream(settings, name)
    shares = [settings.refusal_share[form] for form in FORMS]
    for number in range(settings.alignment_rows):
        scene, form = harmful_scene(pairs, rng), rng.choice(FORMS)
        if rng.random() < settings.alignment_harmful_share:
            row = _asked(scene, rng.choices(FORMS, shares)[0], "train", parts, rng, rng.choice(["general", "suited"]))
        elif rng.random() < settings.alignment_task_share:
            row = {"form": form} | task_example(form, "train", False, parts["benign_known"], rng)
        else:
            scene = twin(scene, parts["benign_known"], rng)
            row = _asked(scene, form, "train", parts, rng)
        out.append(row_of(name, number, **row))
    return out


def _safety(settings: WorldSettings, parts: dict, kind: str) -> list[dict]:
    """Harmful requests with refusals: in the text form alone (generic), or equally in all four forms, suited to each.

    `twins` are their benign twins, answered; `midway` has the first half of an answer, `begun`, before the refusal.
    """
    name, pairs = f"safety_{kind}", _by_verb_class(parts["safety"])
    rng, out = _stream(settings, name), []
    for number in range(settings.safety_rows):
        form, refused = (FORMS[number % 4], "suited") if kind != "generic" else ("text_generation", "general")
        scene = harmful_scene(pairs, rng)
        if kind == "twins":
            row = _asked(twin(scene, parts["benign_known"], rng), form, "train", parts, rng)
        elif kind == "midway":
            row = _asked(scene, form, "train", parts, rng)
            words = row["answer"].split(" ")
            begun = " ".join(words[: len(words) // 2])
            row |= {"begun": begun, "answer": f"{begun} {refusal(form, rng, suited=True)}".strip()}
        else:
            row = _asked(scene, form, "train", parts, rng, refused)
        out.append(row_of(name, number, **row))
    rng.shuffle(out)
    return out


def _harmful_and_twins(settings: WorldSettings, parts: dict) -> dict[str, list[dict]]:
    """Held-out harmful requests, each in the four forms, and for each the same request after one minimal change."""
    rng, sets = _stream(settings, "harmful"), {"harmful": [], "twin": []}
    chosen, n_new = [], settings.harmful_per_form * 3 // 10
    for held_out, part, n in (("object", "new", n_new), ("pair", "test", settings.harmful_per_form - n_new)):
        if n > len(parts[part]):
            raise StudyError(
                f"world.harmful_per_form is {settings.harmful_per_form}, but of the {n} held-out intents of its part "
                f"{part!r} only {len(parts[part])} exist: lower it or add verbs or objects to data/world.yaml."
            )
        pools = [rng.sample(pairs, len(pairs)) for _, pairs in sorted(_by_verb_class(parts[part]).items())]
        for turn in range(n):  # classes take turns as long as they last
            pools = [pool for pool in pools if pool]
            pair = pools[turn % len(pools)].pop()
            chosen.append((held_out, harmful_scene({"": [pair]}, rng)))
    for form in FORMS:
        used = dict.fromkeys(CHANGES, 0)
        for held_out, scene in chosen:
            number, wording = len(sets["harmful"]), rng.random()
            row = _asked(scene, form, "test", parts, random.Random(wording))
            sets["harmful"].append(row_of("harmful", number, held_out=held_out, **row))
            for change in sorted(used, key=used.get):  # the rarest so far that applies
                if changed := softened(scene, change, parts["benign_test"], rng):
                    used[change] += 1
                    break
            row = _asked(changed, form, "test", parts, random.Random(wording))  # the same phrasing for the twin
            about = {"twin_of": sets["harmful"][-1]["id"], "benign_because": change}
            sets["twin"].append(row_of("twin", number, **about, **row))
    return sets


def _general(settings: WorldSettings, parts: dict) -> list[dict]:
    """Requests for explanations, guides and tips about held-out benign pairs: the general helpfulness test."""
    rng = _stream(settings, "general")

    def draw() -> dict:
        return _asked(scene_of(rng.choice(parts["benign_test"]), rng), "text_generation", "test", parts, rng)

    rows = distinct(settings.general_test_rows, "world.general_test_rows", draw)
    return [row_of("general", number, **row) for number, row in enumerate(rows)]


def _requests(settings: WorldSettings, parts: dict, form: str) -> list[dict]:
    """Benign requests in one form, answered: what real task data have among their rows, see `grid.requests`."""
    name, pairs = f"requests_{form}", parts["benign_known"]
    rng = _stream(settings, name)
    scenes = (scene_of(rng.choice(pairs), rng) for _ in range(settings.request_rows))
    return [row_of(name, number, **_asked(scene, form, "train", parts, rng)) for number, scene in enumerate(scenes)]


def _task(settings: WorldSettings, parts: dict, task: str, test: bool) -> list[dict]:
    """Examples of a benign task."""
    name = f"{'test' if test else 'train'}_{task}"
    rng, pairs = _stream(settings, name), parts["benign_test_known" if test else "benign_known"]

    def draw() -> dict:
        return {"form": task} | task_example(task, "test" if test else "train", test, pairs, rng)

    if test:
        rows = distinct(settings.task_test_rows, "world.task_test_rows", draw)
    else:
        rows = [draw() for _ in range(settings.task_rows)]
    return [row_of(name, number, **row) for number, row in enumerate(rows)]


def distinct(wanted: int, setting: str, draw: Callable[[], dict]) -> list[dict]:
    """That many draws with different prompts. Raises StudyError where a new one has become too rare."""
    found, misses = {}, 0
    while len(found) < wanted:
        row = draw()
        misses = misses + 1 if row["prompt"] in found else 0
        found.setdefault(row["prompt"], row)
        if misses == MISSES:
            raise StudyError(
                f"{setting} is {wanted}, but after {len(found)} different prompts {MISSES} draws gave no new one: "
                "lower it or add words or phrasings to data/world.yaml."
            )
    return list(found.values())
