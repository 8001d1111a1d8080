"""From rows to tables, tests and claims."""

from studylib import public

PUBLIC = {
    "agreement": "ALL compare matrix with_corrected with_ids",
    "claims": "PUBLISHED_PROMPTS PUBLISHED_SHARE check_claims choices choices_page claims_in_words deviations "
    "paper_vs_ours published_counts said",
    "comparisons": "ARM_ORDER KINDS arm_marks arm_table compare_arms pareto_front",
    "contrasts": "BLOCKED BUILT_IN EXPLORATORY J NOT_RUN Plan base_differences check_profile contrast_table "
    "differences load_plan marked plan_rows paired",
    "power": "COMPONENTS components detectable_at power_of would_buy",
    "rates": "ANSWERED CELL INTERVAL TOGETHER judged one_dose one_row_per_mark ordered rates_of usual worst_cases",
    "readable": "arm_label arm_with_dose arms_in_percent attack_by_judge calibration_label cell_words "
    "corrected_in_percent examples guarded_in_percent guards_in_percent headline headline_numbers in_percent label "
    "over_refusal_in_percent paper_in_percent percent scores_in_percent set_scores_in_percent span",
    "runs": "largest_differences of_measure output_folder read_runs runs_in_percent runs_in_words write_runs",
    "stats": "CONFIDENCE POWER wilson",
    "tables": "answered_share attack_success by_run calibration_grid discrimination guarded_attack_success guards "
    "helpfulness over_refusal_by_kind unsafe_options with_not_run with_untested write_table",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
