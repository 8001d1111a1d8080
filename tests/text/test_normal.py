"""Normal forms and languages of texts."""

import random
import unicodedata

import pytest

from studylib.text.normal import comparison_form, function_words, languages


@pytest.mark.parametrize(
    "one, other",
    [
        ("Open  the\n\tlocker.", "open the locker"),
        ("\u201cOpen\u201d Paul\u2019s locker \u2026", '"Open" Paul\'s locker...'),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff27\uff4f \uff01", "go"),
        ("stra\u00dfe", "STRASSE"),
        ("open\u200b the\u00a0locker\ufeff", "open the locker"),
        ("a well\u2011known man \u2014 or not", "a well-known man, or not"),
        ("from 3\u20135 to \u22122", "from 3-5 to -2"),
        ("`open`", "'open'"),
        ("l\u00b4eau", "l'eau"),
        ("!?", ""),
    ],
)
def test_case_quotes_dashes_spaces_and_unicode_forms_make_no_difference(one, other):
    assert comparison_form(one) == comparison_form(other)


@pytest.mark.parametrize(
    "one, other",
    [
        ("Write it in C", "Write it in C#"),
        ("Write it in C", "Write it in C++"),
        ("Is it 5?", "Is it -5?"),
        ("add 5 %", "add 5"),
        ("x < 3", "x > 3"),
        ("3.5 km", "35 km"),
        ("p\u00eache", "p\u00e9ch\u00e9"),
        ("\U0001f600", "\U0001f622"),
        ("a_b", "ab"),
    ],
)
def test_what_changes_a_request_is_kept(one, other):
    assert comparison_form(one) != comparison_form(other)


def test_the_normal_form_is_its_own_normal_form_for_any_characters():
    rng = random.Random(0)
    planes = [(32, 127), (160, 0x250), (0x300, 0x370), (0x2000, 0x2200), (0x3000, 0xD7FF), (0xE000, 0x2FFFF)]
    for _ in range(3000):
        text = "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 12)))
        plain = comparison_form(text)
        assert comparison_form(plain) == plain, [unicodedata.name(c, hex(ord(c))) for c in text]
        assert plain == " ".join(plain.split())


def test_function_words_are_words_and_tell_english_from_french():
    words = function_words()
    assert all(isinstance(word, str) for known in words.values() for word in known)  # YAML reads on and no as truths
    assert languages("The boats are painted every spring.") == ["english"]
    assert languages("Les bateaux sont peints au printemps.") == ["french"]
    assert languages("") == []
