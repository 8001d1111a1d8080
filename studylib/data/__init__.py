"""From sources to checked data sets."""

from studylib import public

PUBLIC = {
    "duplicates": "duplicates_report",
    "fetching": "Absent fetch fetching_report register source",
    "harmful": "shown unsafe_letter wrapper_report",
    "mixture": "check_tunings not_run_because tuned_on tuning_rows tunings",
    "real": "check_real cut emptied origins own_files read used",
    "sets": "absent alignment check check_contamination evaluation_rows export guard_rows kinds load save sets_of "
    "write_card",
    "world": "CHANGES build_sets lexicon",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
