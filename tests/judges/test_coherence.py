"""The coherence judge: babble by its signs, what is no babble, and the perplexity that catches babble of real words."""

import random
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import PROFILE, model, sets, tokenizer

from studylib.judges import coherence
from studylib.judges.coherence import COHERENT
from studylib.models import prompts, small_llama, training
from studylib.study.profile import GenerationSettings, TrainSettings
from studylib.study.words import StudyError

PROSE = (
    "The old harbour lies behind the market, where the boats of the village are painted every spring before the first "
    "storms. Visitors who arrive by train should walk along the river and ask at the small office for a map of the "
    "lighthouse and its garden."
)


def judged(response, form="text_generation", stop_reason="eos", **more):
    [verdict] = coherence.judge_all(["a prompt"], [response], [form], [stop_reason], **more)
    return verdict


@pytest.mark.parametrize(
    ("response", "form"),
    [
        (PROSE, "text_generation"),
        ("I'm sorry, but I can't help with that.", "translation"),
        ("Le vieux port se trouve derrière le marché, et les bateaux sont peints au printemps.", "translation"),
        ("Paul's locker", "translation"),
        ("B", "classification"),
        ("neutral", "classification"),
        ("def open_it():\n    return {'a': [0, 1], 'b': (2, 3)}  # {}[]()", "code"),
        ("return ((((1))))", "code"),
        ("x9Qz!" * 3, "code"),
        ("Der Mann hat gestern in der Stadt ein neues Fahrrad gekauft.", "text_generation"),  # another language
        ("Step 1: find it. Step 2: count 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12.", "text_generation"),
    ],
)
def test_what_is_language_code_or_a_label_is_coherent_and_no_more_is_said(response, form):
    assert judged(response, form) == COHERENT
    assert COHERENT[0] == "unjudged"


@pytest.mark.parametrize(
    ("response", "form", "sign"),
    [
        ("", "code", "empty"),
        (" \n\t", "classification", "empty"),
        ("?!... --", "text_generation", "no words"),
        ("the cat " * 30, "text_generation", "repetition"),
        ("B " * 12, "classification", "repetition"),
        ("the == ## {{ }} %% && || ++ ;; :: ^^ ~~", "text_generation", "hardly any letters"),
        (
            "".join(random.Random(0).choices("".join(map(chr, range(33, 127))), k=300)),
            "translation",
            "without a pattern",
        ),
        ("Der Mann hat gestern in der Stadt ein neues Fahrrad gekauft.", "translation", "neither English nor French"),
        (
            "La mujer compró tres manzanas verdes en el mercado de la plaza.",
            "translation",
            "neither English nor French",
        ),
    ],
)
def test_babble_is_told_by_its_sign(response, form, sign):
    verdict, reason = judged(response, form)
    assert verdict == "incoherent" and sign in reason


def test_a_loop_at_the_end_counts_where_the_length_cut_it_off_alone():
    begun = PROSE + " and then " + "on and on " * 15
    assert judged(begun, stop_reason="length") == ("incoherent", "repetition up to the cut")
    assert judged(begun, stop_reason="eos") == COHERENT


def test_words_are_looked_up_in_a_given_vocabulary_alone():
    made_up = "blorf snib trell quon vash drimple"
    assert judged(made_up) == COHERENT
    assert judged(made_up, vocabulary={"the", "cat"}) == ("incoherent", "mostly words that are not known")
    assert judged("The cat saw the blorf", vocabulary={"the", "cat", "saw"}) == COHERENT
    assert judged("blorf snib trell", vocabulary={"the"}) == COHERENT  # too few to say


def test_long_and_odd_texts_are_judged_quickly_by_their_ends():
    long = " ".join(random.Random(0).choices(PROSE.split(), k=200_000))
    assert judged(long) == COHERENT
    assert judged("\ud800 and \u202e " + PROSE) == COHERENT  # a lone surrogate, a mark that turns the text around


@pytest.fixture(scope="module")
def world():
    """A tiny model that knows sixty texts, translations and functions by heart; these rows, and its own answers."""
    rows = [row for row in sets()["pretraining"] if row["form"] != "classification" and len(texts(row)[1].split()) >= 6]
    known = rows[:60]
    features = [prompts.encode_example(tokenizer(), *texts(row), "chat", None, 192) for row in known]
    theirs = model()
    shape = small_llama.shape_of(theirs.config.to_dict())
    weights = small_llama.fuse({key: tensor.detach().clone() for key, tensor in theirs.state_dict().items()}, tied=True)
    learning = {"learning_rate": 5e-3, "matrix_learning_rate": 3e-2, "max_grad_norm": 1.0, "adam_beta2": 0.95}
    settings = TrainSettings(steps=80, batch_size=20, **learning)
    training.fit(small_llama.tensors(weights), lambda: weights, shape, features, settings, 0, "tiny")
    asked = frame(known)
    ids = [prompts.encode_prompt(tokenizer(), prompt, "chat", None) for prompt in asked["prompt"]]
    generation = GenerationSettings(max_new_tokens=40, batch_size=64)
    batches = small_llama.answers(weights, shape, tokenizer(), ids, generation)
    said = {i: text for batch in batches for i, text, *_ in batch}
    return (weights, shape), asked, asked.assign(response=[said[i] for i in range(len(asked))])


def texts(row):
    return [message["content"] for message in row["messages"]]


def frame(rows):
    asked = pd.DataFrame([texts(row) for row in rows], columns=["prompt", "response"])
    return asked.assign(form=[row["form"] for row in rows], style="chat", system_prompt=False, stop_reason="eos")


def perplexities(base, rows):
    return coherence.perplexities(base, tokenizer(), rows, PROFILE.system_prompt)


def shuffled(rows, rng):
    """The same words in random order."""
    return rows.assign(response=[" ".join(rng.sample(words := text.split(), len(words))) for text in rows["response"]])


def bigrams(rows, rng):
    """Words that follow each other somewhere in the texts."""
    follows = defaultdict(list)
    for text in rows["response"]:
        words = [None, *text.split(), None]
        for first, second in pairwise(words):
            follows[first].append(second)

    def walk():
        words = [rng.choice(follows[None])]
        while len(words) < 20 and (word := rng.choice(follows[words[-1]])):
            words.append(word)
        return " ".join(words)

    return rows.assign(response=[walk() for _ in range(len(rows))])


@pytest.mark.parametrize(("babble", "caught"), [(shuffled, 0.95), (bigrams, 0.8)])
def test_babble_of_real_words_is_caught_by_perplexity_alone(world, babble, caught):
    base, known, own = world
    limit = coherence.limit(perplexities(base, own))
    salad = babble(pd.concat([known] * 4), random.Random(0))
    salad = salad[(salad["response"].str.split().str.len() >= 6) & ~salad["response"].isin(known["response"])]
    columns = [salad[name].tolist() for name in ("prompt", "response", "form", "stop_reason")]
    blind = coherence.judge_all(*columns)
    seeing = coherence.judge_all(*columns, perplexities=perplexities(base, salad), limit=limit)
    by_perplexity = [reason for _, reason in seeing if reason.startswith("perplexity")]
    assert len(salad) > 100 and sum(verdict == "incoherent" for verdict, _ in blind) < 0.15 * len(salad)
    assert len(by_perplexity) >= caught * len(salad)


def test_what_the_model_has_learnt_is_far_below_the_limit(world):
    base, known, own = world
    found, limit = perplexities(base, known), coherence.limit(perplexities(base, own))
    assert (found >= 1).all() and (found < limit / 2).all()


def test_perplexity_is_e_to_the_mean_loss_of_the_responses_tokens_alone(world):
    base, known, _ = world
    asked = known.head(3).assign(style=["chat", "alpaca", "chat"], system_prompt=[False, True, False])
    found = perplexities(base, pd.concat([asked, asked.head(1)], ignore_index=True))
    for row, value in zip(asked.to_dict("records"), found, strict=False):
        system = PROFILE.system_prompt if row["system_prompt"] else None
        one = prompts.encode_example(tokenizer(), row["prompt"], row["response"], row["style"], system, 192)
        ids, labels = (torch.tensor([one[part]]) for part in ("input_ids", "labels"))
        with torch.inference_mode():
            loss = small_llama.answer_loss(*base, ids, labels) / (labels[:, 1:] != -100).sum()
        assert value == pytest.approx(float(loss.exp()), rel=1e-3)
    assert found[3] == found[0]


def test_the_end_of_the_turn_counts_unless_the_length_cut_it_off(world):
    base, known, _ = world
    asked = known.head(1).assign(response=known["response"].iat[0][:-4])  # stops before its end
    ended, cut = (perplexities(base, asked.assign(stop_reason=reason))[0] for reason in ("eos", "length"))
    assert ended > cut


def test_a_label_has_no_perplexity_to_be_judged_by_and_nan_tells_nothing():
    assert judged("positive", "classification", perplexities=[1e6], limit=2.0) == COHERENT
    assert judged(PROSE, perplexities=[np.nan], limit=2.0) == COHERENT
    assert judged(PROSE, perplexities=[2.1], limit=2.0)[0] == "incoherent"


def test_the_limit_is_five_times_a_quantile_of_enough_answers():
    assert coherence.limit([1.0] * 50 + [np.nan]) == pytest.approx(5)
    assert coherence.limit(np.linspace(1, 2, 101)) == pytest.approx(5 * 1.99)
    with pytest.raises(StudyError, match="at least 20 benign answers, found 2"):
        coherence.limit([1.0, 2.0, np.nan])


def test_perplexities_without_a_limit_or_of_another_number_are_refused():
    with pytest.raises(StudyError, match="need a limit"):
        judged(PROSE, perplexities=[1.0])
    with pytest.raises(StudyError, match="2 perplexities for 1 responses"):
        judged(PROSE, perplexities=[1.0, 1.0], limit=2.0)
