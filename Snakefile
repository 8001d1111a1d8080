# The stage graph: which notebook runs, with which settings, from which files into which files.
# `make study PROFILE=...` calls it; the work is in the notebooks, run one by one by `python -m studylib.run stage`.
import json
import sys

from studylib.stages import graph
from studylib.study.words import STAGES
from studylib.study.profile import load_profile
from studylib.study.grid import threads, units
from studylib.study.paths import NOTEBOOKS, RunPaths

PROFILE = load_profile(config["profile"])
PATHS = RunPaths.of(PROFILE.name)
UNITS = [unit for stage in STAGES for unit in units(PROFILE, stage)]


rule all:
    input:
        PATHS.manifest,
        [graph.outputs_of(PROFILE, PATHS, unit) for unit in UNITS],


# One rule per notebook run. `settings`, `code` and the library modules are what makes a finished run stale; the
# notebook file itself is not (its prose may be edited). Snakemake compares small files by content, so a stage that was run
# again with the same result stops there.
for unit in UNITS:

    rule:
        name:
            f"{unit.stage}_{unit.name}"
        input:
            earlier=graph.inputs_of(PROFILE, PATHS, unit),
            modules=graph.modules_of(unit.stage),
            notebook=ancient(NOTEBOOKS / f"{unit.stage}.ipynb"),
        output:
            graph.outputs_of(PROFILE, PATHS, unit),
        params:
            settings=json.dumps(graph.settings_of(PROFILE, unit), sort_keys=True),
            code=graph.code_of(unit.stage),
            profile=config["profile"],
            stage=unit.stage,
            unit=unit.name,
            python=sys.executable,
        threads: threads(PROFILE, unit.stage)
        priority: int(unit.stage == "04_mitigation")  # the longest, where the profile has arms
        shell:
            "{params.python:q} -m studylib.run stage --profile {params.profile:q} --stage {params.stage} --unit {params.unit:q}"


rule manifest:
    input:
        [graph.outputs_of(PROFILE, PATHS, unit) for unit in UNITS],
    output:
        PATHS.manifest,
    params:
        profile=config["profile"],
        python=sys.executable,
    shell:
        "{params.python:q} -m studylib.run manifest --profile {params.profile:q}"
