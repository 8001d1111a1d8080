"""The coherence judge: babble by its signs, and what is no babble."""

import random

import pytest

from studylib.judges.word_lists import COHERENT, judge_coherence

PROSE = (
    "The old harbour lies behind the market, where the boats of the village are painted every spring before the first "
    "storms. Visitors who arrive by train should walk along the river and ask at the small office for a map of the "
    "lighthouse and its garden."
)


def judged(response, form="text_generation", stop_reason="eos", **more):
    [verdict] = judge_coherence(["a prompt"], [response], [form], [stop_reason], **more)
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
