"""What is shown of a text: redaction and invisible characters."""

import pytest

from studylib.text.normal import is_blank, name_invisible, redact, redact_prompt, without_invisible


def test_redaction_shows_no_more_than_three_words():
    shown = redact("one two three four five")
    assert shown.startswith("one two three \u2026 (5 words, ")
    assert "four" not in shown
    assert "x" * 21 not in redact("x" * 500)


def test_redaction_escapes_html():
    shown = redact("<script>alert('1')</script> & more")
    assert "<" not in shown and "'" not in shown
    assert "&amp;" in shown


def test_redaction_tells_responses_apart():
    assert redact("one two three four") != redact("one two three five")
    assert redact("one two three four") == redact("one two three four")


def test_a_redacted_prompt_shows_no_word_of_itself():
    shown = redact_prompt("one two three", "harmbench/3", "code")
    assert shown.startswith("[harmbench/3, code, 3 words, ") and "two" not in shown
    assert redact_prompt("one two four", "harmbench/3", "code") != shown


def test_what_cannot_be_seen_is_named_or_removed_and_joined_emoji_stay():
    for character in "\x00\x07\x1b\x7f\u200b\u00ad\u2066\ufeff\u2028\ue000\ud800\U000e0041":
        assert name_invisible(f"a{character}b") == f"a[U+{ord(character):04X}]b"
        assert without_invisible(f"a{character}b") == ("a\nb" if character.isspace() else "ab")
    assert name_invisible("\U0001f469\u200d\U0001f4bb\tx\r\n") == "\U0001f469\u200d\U0001f4bb\tx\r\n"
    assert without_invisible("c\u200da\u200dn't") == "can't"
    assert name_invisible("a\rb", "<U+{:04X}>") == "a<U+000D>b" and without_invisible("a\rb") == "a\nb"


@pytest.mark.parametrize("text", ["", " \n\t ", "\u200b\ufeff", "\x00\x00", "\u00a0\u3000"])
def test_a_text_with_nothing_to_see_is_blank(text):
    assert is_blank(text) and not is_blank(text + "a")
