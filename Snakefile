# The stage graph: which notebook runs, with which settings, from which files into which files.
# `make study PROFILE=...` calls it; the work is in the notebooks, run one by one by `python -m studylib.run stage`.
import json
import os
import sys

from studylib.stages import graph
from studylib.study.words import STAGES
from studylib.study.profile import load_profile
from studylib.study.grid import threads, units
from studylib.study.paths import RunPaths

PROFILE = load_profile(config["profile"])
PATHS = RunPaths.of(PROFILE.name)
UNITS = [unit for stage in STAGES for unit in units(PROFILE, stage)]
CODE = {stage: graph.code_of(stage) for stage in STAGES}


def here(paths):
    """The run's own paths relative to its folder, so that what Snakemake notes of them moves with it."""
    return [os.path.relpath(path, PATHS.run) if path.is_relative_to(PATHS.run) else path for path in paths]


rule all:
    input:
        here([PATHS.manifest]),
        [here(graph.outputs_of(PROFILE, PATHS, unit)) for unit in UNITS],


# One rule per notebook run. `settings` and `code` make a finished run stale, and the contents of its input: Snakemake
# compares checksums where times differ. What may differ between machines (the interpreter, the profile's path) stands
# in the command, of which only the template is compared.
for unit in UNITS:

    rule:
        name:
            f"{unit.stage}_{unit.name}"
        input:
            here(graph.inputs_of(PROFILE, PATHS, unit)),
        output:
            here(graph.outputs_of(PROFILE, PATHS, unit)),
        params:
            settings=json.dumps(graph.settings_of(PROFILE, unit), sort_keys=True),
            code=CODE[unit.stage],
            stage=unit.stage,
            unit=unit.name,
        threads: threads(PROFILE, unit.stage)
        priority: int(unit.stage == "04_mitigation")  # the longest, where the profile has arms
        shell:
            "{sys.executable:q} -m studylib.run stage --profile {config[profile]:q} --stage {params.stage} --unit {params.unit:q}"


rule manifest:
    input:
        [here(graph.outputs_of(PROFILE, PATHS, unit)) for unit in UNITS],
    output:
        here([PATHS.manifest]),
    shell:
        "{sys.executable:q} -m studylib.run manifest --profile {config[profile]:q}"
