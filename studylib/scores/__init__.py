"""How good benign answers are."""

from studylib import public

PUBLIC = {
    "benign": "headline judge_pairs of_sets pairs score win_rate",
    "programs": "in_words pass_at_1 problems",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
