"""The command line: `python -m studylib.run study|stage|manifest|summary|export`, see `studylib.stages.run`."""

from studylib.stages.run import main

if __name__ == "__main__":
    main()
