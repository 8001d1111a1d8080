"""Normal forms of a text, its words, loops and languages; how it is shown: invisible signs named, harm redacted."""

import hashlib
import html
import re
import unicodedata
import zlib
from functools import cache

from studylib.study.files import read_yaml
from studylib.study.paths import DATA

WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
QUOTES = {ord(c): "'" for c in "\u2018\u2019\u02bc\u00b4"} | {ord(c): '"' for c in "\u201c\u201d\u00ab\u00bb"}
CONTRACTIONS = {"can't": "cannot", "won't": "will not", "n't": " not", "i'm ": "i am ", "i'll ": "i will "}
LOOP = re.compile(r"\b(?:(\S+ )\1{5,}|((?:\S+ ){2,8}?)\2{3,})")  # a word six times, a phrase four times
DASH = re.compile(r"(?<!\d)-(?!\d)")
FUNCTION_WORDS = 0.05  # share of a language's function words from which a text is in it


def normal_form(text: str) -> str:
    """The text as the judges' word lists expect it: lower case, no accents, contractions written out, single spaces.

    An apostrophe that is left is followed by a space: see the head of `data/refusals.yaml`.
    """
    text = without_accents(text).lower()
    if "'" in text:
        for short, long in CONTRACTIONS.items():
            text = text.replace(short, long)
        text = text.replace("'", "' ")
    return " ".join(text.split())


def without_accents(text: str) -> str:
    """The text without accents, in Unicode's NFKD, its quotation marks those of ASCII."""
    if text.isascii():
        return text
    letters = unicodedata.normalize("NFKD", text.translate(QUOTES))
    return "".join(c for c in letters if not unicodedata.combining(c))


class _Characters(dict):
    """A table for `str.translate`, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        plain = unicodedata.normalize("NFKC", QUOTES.get(code, chr(code))).translate(QUOTES)  # may bring a quote
        self[code] = "".join(map(_compared_as, plain)).casefold()
        return self[code]


def _compared_as(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Cf":  # such as a zero-width space
        return ""
    if kind == "Pd" or character == "\u2212":
        return "-"
    if character in "#%&*@/\\_":  # C is not C#, 5 is not 5 %
        return character
    return " " if kind[0] in "PZ" or kind == "Cc" or character == "`" else character


CHARACTERS = _Characters()


def comparison_form(text: str) -> str:
    """The text as data sets compare it: Unicode NFKC, case folded, punctuation and white space as single spaces.

    What can change a request stays: accents, symbols (+ = < $, emoji), the marks # % & * @ / \\ _, and dashes next to a
    digit, all of them as hyphens. Characters without a width go. `normal_form` is for judges and keeps less.
    """
    text = text.translate(CHARACTERS)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)  # what composes only with its neighbour
    if "-" in text:
        text = DASH.sub(" ", text)
    return " ".join(text.split())


def loops(text: str, words: list[str]) -> bool:
    """Whether at least half of the text repeats itself; `words` are its words in lower case, as WORD finds them."""
    if len(text) > 200 and len(text) > 5 * len(zlib.compress(text.encode(errors="replace"))):
        return True
    if len(set(words)) > 1 + 0.65 * len(words):  # spares the search: loops over half of the words leave fewer
        return False
    joined = " ".join(words) + " "
    return 2 * sum(len(found.group()) for found in LOOP.finditer(joined)) >= len(joined)


def languages(text: str) -> list[str]:
    """The languages of `data/stop_words.yaml` whose function words are at least 5 % of the text's words."""
    words = re.findall(r"[^\W_]+", text.lower())
    found = {name: sum(word in known for word in words) for name, known in function_words().items()}
    return [name for name, n in found.items() if words and n >= FUNCTION_WORDS * len(words)]


@cache
def function_words() -> dict[str, frozenset]:
    """The function words of each language of `data/stop_words.yaml`."""
    return {name: frozenset(words) for name, words in read_yaml(DATA / "stop_words.yaml").items()}


INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}  # Unicode categories: control, format, private, broken, separators
WHITE_SPACE = frozenset("\t\n\r")
JOINERS = frozenset("\u200c\u200d")  # parts of emoji and of Persian words
LONE_RETURN = re.compile(r"\r(?!\n)")


def without_invisible(text: str) -> str:
    """The text without characters that cannot be seen; of those that are white space each is a line end."""
    signs = {ord(c): "\n" if c.isspace() else "" for c in _invisible(text)}
    return LONE_RETURN.sub("\n", text.translate(signs) if signs else text)


def name_invisible(text: str, pattern: str = "[U+{:04X}]") -> str:
    """The text with each character that cannot be seen named by its code point; line ends, tabs and joiners stay."""
    signs = {ord(c): pattern.format(ord(c)) for c in _invisible(text) - JOINERS}
    return LONE_RETURN.sub(pattern.format(13), text.translate(signs) if signs else text)


def is_blank(text: str) -> bool:
    """Whether there is nothing to see in the text."""
    return not any(c.isprintable() and not c.isspace() for c in text)


def _invisible(text: str) -> set[str]:
    if text.isprintable():
        return set()
    return {c for c in set(text) - WHITE_SPACE if unicodedata.category(c) in INVISIBLE}


def redact(text: str) -> str:
    """The first three words, how many there are, and 8 hex digits of the text's SHA-256; safe inside HTML."""
    words = text.split()
    shown = " ".join(word[:20] for word in words[:3])  # without spaces a whole response is one word
    return html.escape(f"{shown} \u2026 ({len(words)} words, {_digest(text)})")


def redact_prompt(prompt: str, *about: str) -> str:
    """What is shown instead of a harmful prompt: `about`, its length and 8 hex digits of its SHA-256, no word of it."""
    return f"[{', '.join([*about, f'{len(prompt.split())} words', _digest(prompt)])}]"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
