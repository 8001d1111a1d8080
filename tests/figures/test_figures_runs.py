"""The figure of runs beside each other: values, colours, what is drawn of many, and its caption."""

import shutil

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from two_runs import ONE, TWO, both, changed, copied, where, with_a_second_model

from studylib.analysis import runs as between_runs
from studylib.analysis import tables
from studylib.figures import catalogue, planes
from studylib.study.words import StudyError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return both(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    return copied(made, tmp_path, monkeypatch)


def of(runs, **options):
    return between_runs.of_measure(runs, **options), [run.name for run in runs]


def drawn_of(runs, **options):
    return planes.runs_side_by_side(*of(runs, **options)).figure


def texts_of(runs, **options):
    return catalogue.texts("runs_side_by_side", planes.runs_side_by_side(*of(runs, **options)))


def points(ax):
    """Position, height and colour of the points with intervals in a panel."""
    lines = [bar.lines[0] for bar in ax.containers if isinstance(bar, mpl.container.ErrorbarContainer)]
    return [(line.get_xdata()[0], line.get_ydata()[0], to_hex(line.get_color()).upper()) for line in lines]


def test_the_figure_has_a_dot_per_run_cell_and_colour_at_the_tables_height(runs):
    pair = between_runs.read_runs([ONE, TWO])
    drawn = drawn_of(pair)
    assert [ax.get_title() for ax in drawn.axes[:3]] == [f"{a} safety data" for a in ("no", "generic", "multitask")]
    assert [text.get_text() for text in drawn.legends[0].texts] == [ONE, TWO]
    wanted = {
        (run.name, row["rate"])
        for run in pair
        for row in where(run.tables["attack_success"], form="all").to_dict("records")
    }
    found = [point for ax in drawn.axes for point in points(ax)]
    assert {(pair[planes.RUN_COLOURS.index(colour)].name, height) for _, height, colour in found} == wanted
    ticks = [tick.get_text() for tick in drawn.axes[-3].get_xticklabels()]
    at_code = {colour: height for x, height, colour in points(drawn.axes[-3]) if round(x) == ticks.index("code")}
    assert at_code == {planes.RUN_COLOURS[0]: 1, planes.RUN_COLOURS[1]: 0}
    assert len(set(planes.RUN_COLOURS)) == len(set(planes.RUN_MARKS)) == len(planes.RUN_COLOURS) == 6


@pytest.mark.slow
def test_the_caption_tells_runs_judges_and_extremes_and_is_kept_with_the_figure(runs, tmp_path):
    changed(runs / TWO, judge="classifier")
    pair = between_runs.read_runs([ONE, TWO])
    drawn = catalogue.draw_runs(*of(pair), tmp_path / "out")
    assert isinstance(drawn, mpl.figure.Figure)
    text, alt = texts_of(pair)
    assert "Judge: one: rules; two: classifier." in text and "in each of 2 runs" in text
    assert "from 0 % (one, aligned model, " in alt and "to 100 % (one, tuned on code, " in alt
    assert (tmp_path / "out" / "attack_success_rate.md").read_text() == f"{text}\n\nAlternative text: {alt}\n"
    assert all((tmp_path / "out" / f"attack_success_rate.{ending}").stat().st_size for ending in ("png", "svg"))


def test_a_figure_shows_one_model_the_first_that_two_runs_have_unless_named(runs):
    pair = with_a_second_model(runs)

    def colours(**more):
        return {colour for ax in drawn_of(pair, **more).axes for *_, colour in points(ax)}

    assert colours() == set(planes.RUN_COLOURS[:2]) and colours(model="large") == {planes.RUN_COLOURS[1]}
    assert "one: nothing to draw; two: rules" in texts_of(pair, model="large")[0]


def test_of_a_run_with_several_shares_of_safety_data_each_is_compared_with_its_like_and_one_is_drawn(runs):
    for table in ("attack_success", "helpfulness"):
        path = runs / TWO / "tables" / f"{table}.csv"
        rows = pd.read_csv(path, keep_default_na=False, na_values=[""])
        more = rows[rows["safety_data"] != "none"].assign(safety_fraction=0.3)
        tables.write_table(pd.concat([rows, more]), path)
    pair = between_runs.read_runs([ONE, TWO])
    assert set(between_runs.in_one_run(pair)["safety_fraction"]) == {0.3}
    assert between_runs.differences(pair)["note"].eq("").all()
    n_drawn = sum(len(points(ax)) for ax in drawn_of(pair).axes)
    assert n_drawn == 2 * len(where(pair[0].tables["attack_success"], form="all"))
    assert "Safety data: 10 % of the tuning rows." in texts_of(pair)[0]


def test_rival_mitigations_are_compared_between_runs_and_not_drawn(runs):
    for name in (ONE, TWO):
        for table in ("attack_success", "helpfulness"):
            path = runs / name / "tables" / f"{table}.csv"
            rows = pd.read_csv(path, keep_default_na=False, na_values=[""])
            more = rows[rows["safety_data"] == "multitask"].assign(safety_data="code_only")
            tables.write_table(pd.concat([rows, more]), path)
    pair = between_runs.read_runs([ONE, TWO])
    assert "code_only" in set(between_runs.differences(pair)["safety_data"])
    ours = where(pair[0].tables["attack_success"], form="all")
    n_drawn = sum(len(points(ax)) for ax in drawn_of(pair).axes)
    assert n_drawn == 2 * (ours["safety_data"] != "code_only").sum()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"measure": "speed"}, "no figure of 'speed': there are attack_success_rate and over_refusal_rate"),
        ({"form": "poem"}, "nothing to draw: no run has attack success rate in the form 'poem'"),
        ({"model": "gpt"}, "in the form 'all' of the model 'gpt'"),
    ],
)
def test_a_figure_of_nothing_is_refused(runs, more, said):
    with pytest.raises(StudyError, match=said):
        drawn_of(between_runs.read_runs([ONE, TWO]), **more)


def test_six_runs_are_drawn_and_seven_are_too_many(runs):
    seven = [shutil.copytree(runs / ONE, runs / f"run{i}").name for i in range(7)]
    drawn = drawn_of(between_runs.read_runs(seven[:6]))
    assert {colour for ax in drawn.axes for *_, colour in points(ax)} == set(planes.RUN_COLOURS)
    with pytest.raises(StudyError, match="shows up to 6 runs, these are 7: name fewer"):
        drawn_of(between_runs.read_runs(seven))
