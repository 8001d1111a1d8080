"""What a text says, with no model: normal forms, languages, refusals, and what is shown of it."""

from studylib import public

PUBLIC = {
    "normal": "WORD comparison_form is_blank languages loops name_invisible normal_form redact redact_prompt "
    "without_invisible",
    "refusals": "QUOTATION judge_all judge_rules",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
