"""Prompting, loading, tuning and questioning language models."""

from studylib import public

PUBLIC = {
    "building": "build_miniature build_tiny load_translator translate",
    "engine": "open_model use_threads",
    "hub": "check_source generate generate_ids gpu_memory load load_tokenizer padded",
    "prompts": "ALPACA calibrations encode_example encode_mixed encode_prompt encode_row fingerprint "
    "first_tokens template",
    "selfcheck": "require_self_check self_check",
    "training": "Checkpoint",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
