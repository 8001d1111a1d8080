"""What each notebook calls."""

from studylib import public

PUBLIC = {
    "cells": "references",
    "explorer": "show",
    "findings": "beside_the_paper exploratory figure judges_of options_named tables_of what_the_run_was write_page",
    "graph": "built_models check_models check_parameters check_prerequisites check_space",
    "judging": "Sheet against choose user_labels",
    "laboratory": "Laboratory baseline_gap dose_response erosion refusal_along request_response",
    "needs": "large require table",
    "planning": "in_words write_seconds",
    "prepare": "calibrations data dialogues losses models_of register requirements self_check",
    "stage": "begin finished_responses one_batch",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
