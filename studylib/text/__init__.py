"""What a text says, with no model: normal forms, languages, refusals, and what is shown of it."""

from studylib import public

PUBLIC = {
    "normal": "WORD comparison_form languages loops normal_form",
    "refusals": "QUOTATION judge_all judge_rules",
    "shown": "is_blank name_invisible redact redact_prompt without_invisible",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
