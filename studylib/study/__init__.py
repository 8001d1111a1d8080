"""What a study is, as plain data: words, profiles, the grid, paths and files."""

from studylib import public

PUBLIC = {
    "files": "Clock LIBRARY append_rows aside code_digest digest locked meaning progress read_csv read_parquet "
    "read_rows read_text read_yaml write_parquet write_text",
    "grid": "Cell Unit arm_cells cells explores main_requests system_prompts threads tunings unit_name units untuned",
    "paths": "DATA NOTEBOOKS ROOT RunPaths known_runs places runs_folder users_own",
    "profile": "Count DataSettings GenerationSettings LoraSettings ModelSettings Name PROFILES Profile Settings "
    "TrainSettings WorldSettings explain load_profile profile_names profile_path",
    "words": "ARCHITECTURES ARMS EMBEDDED_GUARDS FORMS GUARDS LABELS LABORATORY MINIATURE PROMPT_SETS REQUESTS "
    "SAFETY_DATA SIDES STAGES STAGE_SAFETY_DATA STAND_IN STYLES StudyError TASKS TINY VERDICTS Verdict counted",
}
__getattr__, __dir__, __all__ = public(__name__, PUBLIC)
