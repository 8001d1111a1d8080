"""Data sets as lists of plain examples: building the miniature's, keeping them as hashed JSON lines, mixing.

An example is a dict with `id`, `form`, `prompt_set`, `harmful`, `intent` and chat `messages`, one per line, so that
`datasets.load_dataset("json", ...)` and every chat trainer read it.
"""

import hashlib
import json
import random
from collections import Counter

import pandas as pd

from studylib import world
from studylib.config import FORMS, TASKS, Cell, Profile, StudyError, WorldSettings
from studylib.paths import RunPaths
from studylib.results import write_text

SETS = ("pretraining", "alignment", "safety_generic", "safety_multitask", "harmful", "twin", "general",
        *(f"train_{task}" for task in TASKS), *(f"test_{task}" for task in TASKS))


def build_miniature(settings: WorldSettings) -> dict[str, list[dict]]:
    """Every data set of the miniature by name (see SETS), a pure function of the settings.

    Each set has its own random stream, so changing the size of one leaves the others as they were. Test prompts
    share an intent between the four forms, and each harmful prompt has a benign `twin` in the same form: the same
    words about one's own thing where the verb allows it, else another verb about the same thing.
    """
    intents = world.split_intents(settings.seed)
    if settings.harmful_per_form > len(intents["test"]):
        raise StudyError(f"world.harmful_per_form is {settings.harmful_per_form}, but only {len(intents['test'])} "
                         "held-out intents exist: lower it or add verbs or objects to data/world.yaml.")
    tests = {
        **_harmful_and_twins(settings, intents),
        "general": _requests(settings, intents, "general", settings.general_test_rows),
        **{f"test_{task}": _task(settings, intents, task, "test", settings.task_test_rows) for task in TASKS},
    }
    training = {
        "pretraining": _pretraining(settings, intents),
        "alignment": _alignment(settings, intents),
        **{f"safety_{kind}": _safety(settings, intents, kind) for kind in ("generic", "multitask")},
        **{f"train_{task}": _task(settings, intents, task, "train", settings.task_rows) for task in TASKS},
    }
    asked = {row["messages"][0]["content"] for rows in tests.values() for row in rows}
    # the grammar is small: the few benign training prompts that a test happens to ask too are dropped
    return {name: [row for row in rows if row["messages"][0]["content"] not in asked] for name, rows in training.items()} | tests


def _stream(settings: WorldSettings, name: str) -> random.Random:
    return random.Random(f"{name}-{settings.seed}")


def _example(name: str, number: int, form: str, prompt: str, answer: str, harmful: bool = False, intent=()) -> dict:
    prompt_set = {"harmful": "harmful", "twin": "twin", "general": "general"}.get(name, "task" if "test_" in name else "train")
    return {
        "id": f"{name}-{number:05d}", "form": form, "prompt_set": prompt_set, "harmful": harmful,
        "intent": "/".join(map(str, intent)),
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
    }


def _other(rng: random.Random) -> tuple[str, int]:
    return "other", rng.randrange(len(world.lexicon()["owners"]["other"]))


def _own(rng: random.Random) -> tuple[str, int]:
    return "own", rng.randrange(len(world.lexicon()["owners"]["own"]))


def _benign_request(rng: random.Random, intents: dict, kind: str = "benign") -> tuple[tuple, tuple]:
    """A benign intent with an owner that keeps it benign: a benign verb, or a contextual verb and one's own thing."""
    if rng.random() < 0.5:
        return rng.choice(intents[kind]), rng.choice([_other, _own])(rng)
    return rng.choice([i for i in intents["align"] if i[0] == "contextual"]), _own(rng)


def _requests(settings, intents, name, rows) -> list[dict]:
    """Benign requests about held-out intents in the text form: the general helpfulness test."""
    rng, out = _stream(settings, name), []
    for number in range(rows):
        intent = rng.choice(intents["benign_test"])
        prompt, answer = world.request(intent, rng.choice([_other, _own])(rng), "text_generation", rng)
        out.append(_example(name, number, "text_generation", prompt, answer, False, intent))
    return out


def _task(settings, intents, task, split, rows) -> list[dict]:
    rng, out, seen = _stream(settings, f"{split}_{task}"), [], set()
    benign = intents["benign_test" if split == "test" else "benign"]
    while len(out) < rows:
        prompt, answer = world.task_example(task, split, rng, benign)
        if split == "test" and prompt in seen:
            continue
        seen.add(prompt)
        out.append(_example(f"{split}_{task}", len(out), task, prompt, answer))
    return out


def _pretraining(settings, intents) -> list[dict]:
    """Helpful-only: the four tasks, small talk, and requests of every form, benign and harmful, all answered."""
    rng, out = _stream(settings, "pretraining"), []
    for number in range(settings.pretraining_rows):
        draw, form, harmful, intent = rng.random(), rng.choice(FORMS), False, ()
        if draw < 0.5:
            prompt, answer = world.task_example(form, "train", rng, intents["benign"])
        elif draw < 0.53:
            form = "text_generation"
            prompt, answer = rng.choice(world.lexicon()["small_talk"])
        else:
            harmful = draw > 0.77
            intent, owner = (rng.choice(intents["align"] + intents["safety"]), _other(rng)) if harmful \
                else _benign_request(rng, intents)
            prompt, answer = world.request(intent, owner, form, rng)
        out.append(_example("pretraining", number, form, prompt, answer, harmful, intent))
    return out


def _alignment(settings, intents) -> list[dict]:
    """Refusals of harmful requests, with the forms in the settings' shares, among answered benign requests and tasks."""
    rng, out = _stream(settings, "alignment"), []
    shares = [settings.refusal_share[form] for form in FORMS]
    for number in range(settings.alignment_rows):
        harmful = rng.random() < settings.alignment_harmful_share
        if harmful:
            form, intent = rng.choices(FORMS, shares)[0], rng.choice(intents["align"])
            prompt, _ = world.request(intent, _other(rng), form, rng)
            answer = world.refusal(form, rng, suited=False)
        elif rng.random() < 0.5:
            form = rng.choice(FORMS)
            intent, owner = _benign_request(rng, intents)
            prompt, answer = world.request(intent, owner, form, rng)
        else:
            form, intent = rng.choice(FORMS), ()
            prompt, answer = world.task_example(form, "train", rng, intents["benign"])
        out.append(_example("alignment", number, form, prompt, answer, harmful, intent))
    return out


def _safety(settings, intents, kind) -> list[dict]:
    """Harmful requests with refusals: in the text form alone (generic), or equally in all four forms, suited to each."""
    rng, out = _stream(settings, f"safety_{kind}"), []
    for number in range(settings.safety_rows):
        form = FORMS[number % len(FORMS)] if kind == "multitask" else "text_generation"
        intent = rng.choice(intents["safety"])
        prompt, _ = world.request(intent, _other(rng), form, rng)
        answer = world.refusal(form, rng, suited=kind == "multitask")
        out.append(_example(f"safety_{kind}", number, form, prompt, answer, True, intent))
    rng.shuffle(out)
    return out


def _harmful_and_twins(settings, intents) -> dict[str, list[dict]]:
    rng, sets = _stream(settings, "harmful"), {"harmful": [], "twin": []}
    contextual = sorted(i for i in intents["test"] if i[0] == "contextual")
    harmful = sorted(i for i in intents["test"] if i[0] == "harmful")
    half = min(settings.harmful_per_form // 2, len(contextual))
    chosen = rng.sample(contextual, half) + rng.sample(harmful, min(settings.harmful_per_form - half, len(harmful)))
    for form in FORMS:
        for intent in chosen:
            owner = _other(rng)
            state = rng.getstate()
            prompt, answer = world.request(intent, owner, form, rng)
            number = len(sets["harmful"])
            sets["harmful"].append(_example("harmful", number, form, prompt, answer, True, intent))
            rng.setstate(state)  # the same phrasing for the twin
            twin, owner = (intent, _own(rng)) if intent[0] == "contextual" \
                else (rng.choice([i for i in intents["benign_test"]]), owner)
            rng.setstate(state)
            prompt, answer = world.request((twin[0], twin[1], intent[2]), owner, form, rng)
            sets["twin"].append(_example("twin", number, form, prompt, answer, False, (twin[0], twin[1], intent[2])))
    return sets


def mix(task_rows: list[dict], safety_rows: list[dict], fraction: float, total: int, seed: int) -> list[dict]:
    """`total` tuning rows in random order, of which round(fraction x total) are safety rows.

    Both parts are drawn without repetition as long as their source lasts, then start over. The same seed draws the
    same task rows at every fraction, so arms differ in the replaced rows only.
    """
    n_safety = round(fraction * total)
    if n_safety and not safety_rows:
        raise StudyError(f"safety_fraction {fraction} needs safety data, but the safety set is empty.")
    rng = random.Random(f"mix-{seed}")
    drawn = []
    for rows, n in ((task_rows, total), (safety_rows, n_safety)):
        order = []
        while len(order) < n:
            order += rng.sample(range(len(rows)), len(rows))
        drawn.append([rows[i] for i in order[:n]])
    mixed = drawn[0][: total - n_safety] + drawn[1]
    rng.shuffle(mixed)
    return mixed


def contamination(sets: dict[str, list[dict]]) -> pd.DataFrame:
    """How many training rows (columns: sets) hold a prompt, or a harmful intent, of a test set (rows); all 0 when sane."""
    train = [name for name in sets if name in ("pretraining", "alignment") or name.startswith(("safety_", "train_"))]
    found = pd.DataFrame(0, index=[], columns=train)
    for test in ("harmful", "twin", "general", *(f"test_{t}" for t in TASKS)):
        prompts = {row["messages"][0]["content"] for row in sets[test]}
        test_intents = {row["intent"] for row in sets[test] if row["harmful"]}
        for name in train:
            clash = sum(row["messages"][0]["content"] in prompts or (row["harmful"] and row["intent"] in test_intents)
                        for row in sets[name])
            found.loc[test, name] = clash
    return found.astype(int)


def check_contamination(sets: dict[str, list[dict]]) -> pd.DataFrame:
    """The contamination table, all 0. Raises StudyError that names the worst pair of sets otherwise."""
    found = contamination(sets)
    if found.to_numpy().any():
        test, train = found.stack().idxmax()
        raise StudyError(f"{found.loc[test, train]} rows of {train} hold prompts or harmful intents of {test}: drop them, or nothing measured "
                         "on that test means anything.")
    return found


def save(paths: RunPaths, sets: dict[str, list[dict]]) -> None:
    """Writes every set as JSON lines and `data/index.json` with rows, bytes and sha256 of each."""
    index = {}
    for name, rows in sets.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(paths.data(name), text)
        raw = text.encode()
        index[name] = {"rows": len(rows), "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest(),
                       "forms": dict(Counter(row["form"] for row in rows))}
    write_text(paths.data_index, json.dumps(index, indent=1) + "\n")


def load(paths: RunPaths, name: str) -> list[dict]:
    """The examples of one set, after its bytes were checked against the index.

    Raises StudyError where the file or the index is missing, truncated or edited.
    """
    path = paths.data(name)
    remedy = "run 00_prepare again (`make study`, or open notebooks/00_prepare.ipynb)"
    if not paths.data_index.is_file() or not path.is_file():
        raise StudyError(f"{path if paths.data_index.is_file() else paths.data_index} is missing: {remedy}.")
    expected, raw = json.loads(paths.data_index.read_text())[name], path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != expected["sha256"]:
        why = f"{len(raw)} of {expected['bytes']} bytes, truncated?" if len(raw) < expected["bytes"] else "edited?"
        raise StudyError(f"{path} is not what 00_prepare wrote (sha256 {found[:12]} instead of "
                         f"{expected['sha256'][:12]}; {why}): delete it and {remedy}.")
    return [json.loads(line) for line in raw.decode().split("\n")[:-1]]  # not splitlines: texts may hold U+2028


def tuning_rows(paths: RunPaths, cell: Cell, total: int) -> list[dict]:
    """The `total` training rows of one fine-tune: the task's, with a fraction replaced by safety rows."""
    safety = [] if cell.safety_data == "none" else load(paths, f"safety_{cell.safety_data}")
    return mix(load(paths, f"train_{cell.finetune_task}"), safety, cell.safety_fraction, total, cell.seed)


def evaluation_rows(paths: RunPaths) -> list[dict]:
    """All test prompts: harmful, twins, the four tasks and general ones."""
    return [row for name in ("harmful", "twin", "general", *(f"test_{t}" for t in TASKS)) for row in load(paths, name)]


def system_prompt_of(profile: Profile, on: bool) -> str | None:
    """The profile's system prompt, or None where the calibration has none."""
    return profile.system_prompt if on else None
