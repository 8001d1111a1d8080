"""From tables to pictures and captions."""

from studylib import public

PUBLIC = {
    "catalogue": "FIGURES draw draw_runs",
    "rates": "VERDICT_COLOURS curves",
    "style": "save set_theme style_label",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
