"""Prompting, loading, tuning and questioning language models."""

from studylib import public

PUBLIC = {
    "engine": "open_model",
    "hub": "build_miniature check_source generate generate_ids gpu_memory load load_adapter load_tokenizer padded",
    "prompts": "ALPACA calibrations encode_example encode_mixed encode_prompt encode_row fingerprint template",
    "selfcheck": "require_self_check self_check",
    "tiny": "build_tiny",
    "translator": "load_translator translate",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
