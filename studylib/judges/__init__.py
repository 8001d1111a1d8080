"""A verdict for every response, and guards that block."""

from studylib import public

PUBLIC = {
    "classifier": "load recalibrated",
    "endpoint": "Endpoint Question ask_all chat_question check_texts open_endpoint shown wordings",
    "guards": "decide",
    "labelled": "COLUMNS OWN chatgpt_refusals own xstest",
    "registry": "check_first definitions judge without_refusals",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
