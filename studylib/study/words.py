"""The words of the study, the same in parameters, columns, files and figures, and its one error."""

TASKS = ("text_generation", "code", "translation", "classification")
FORMS = TASKS  # a harmful prompt comes in the form of one of the four tasks
STYLES = ("chat", "alpaca")
# Which benign requests ("explain how to open my tent") a tuning has among its rows: none, so the task's rows alone;
# some in the form of the task, or in the other forms; or nothing but requests in the form of the task.
REQUESTS = ("none", "own", "other", "alone")
SAFETY_DATA = ("none", "generic", "multitask")
# Rival mitigations, in the same column: multitask data of one form alone; with benign twins, answered, for every other
# row; refusals taught in the middle of an answer; the same data in a second tuning after the task's; the adapter scaled
# down, untrained.
ARMS = (*(f"{form}_only" for form in FORMS), "multitask_twins", "multitask_midway", "multitask_after", "scaled")
PROMPT_SETS = ("harmful", "twin", "sounds_harmful", "task", "general")
MINIATURE = "miniature"  # the source of the model that 00_prepare trains from nothing
TINY = "tiny/"  # and of the untrained ones that it builds with a real architecture, as in tiny/llama3
ARCHITECTURES = ("llama3", "gemma", "phi3", "mistral", "qwen")
EMBEDDED_GUARDS = ("text_only", "all_forms")  # fitted on the run's own training rows of the text form, or of every form
GUARDS = (*EMBEDDED_GUARDS, "llama_guard", "wildguard", "moderation_endpoint")
SIDES = ("input", "output", "both")  # of a guard: it reads the prompt, the response, or blocks what either side does
STAND_IN = "stand_in"  # harm of the generated world, where a list of harmful instructions or a safety set could stand

# Which safety data a stage's fine-tunes carry.
STAGE_SAFETY_DATA = {"02_finetune": "none", "03_defences": "generic", "04_mitigation": "multitask"}
STAGES = ("00_prepare", "01_baseline", *STAGE_SAFETY_DATA, "05_helpfulness", "06_findings")
LABORATORY = "07_laboratory"  # for teaching: reads what 00_prepare made, is no part of the study
# The judges of a profile that names none; the first decides, the lists of words are what other studies judged with.
WORD_LISTS = ("words_gcg", "words_finetuning_safety", "words_xstest", "words_jailbreakbench")
JUDGES = ("classifier", "rules", "coherence", *WORD_LISTS)
LABELS = "08_labels"  # for labelling responses by hand
COMPARE = "09_compare"  # for comparing finished runs
VERDICTS = ("refused", "answered", "partial", "incoherent", "unjudged")  # defined, with examples, in data/verdicts.yaml
Verdict = tuple[str, str]  # one of VERDICTS, and the reason in a few words


def counted(n: int, word: str) -> str:
    """The number with its word, as in "1 seed" and "1,200 responses"."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"


class StudyError(Exception):
    """What is wrong and what to do about it, in one sentence; notebooks show it without a traceback."""

    def _render_traceback_(self) -> list[str]:  # read by IPython
        return [f"StudyError: {self}"]
