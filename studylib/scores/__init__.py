"""How good benign answers are."""

from studylib import public

PUBLIC = {
    "benign": "headline of_sets score",
    "preferences": "judge_pairs pairs win_rate",
    "programs": "in_words pass_at_1 problems",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
