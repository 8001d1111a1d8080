"""What is shown of a text: invisible characters named or removed, harmful texts redacted."""

import hashlib
import html
import re
import unicodedata

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
