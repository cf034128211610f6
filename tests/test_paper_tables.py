"""The paper's tables: its own means and percentages, the best two, verdicts, other tasks."""

import csv
import io

import pytest

from pipeline.hear.score.params import ScoreParams
from pipeline.hear.tasks.selection import HEAR_TASKS
from pipeline.report.paper import comparison, rendering, tables
from pipeline.report.paper.columns import DCASE, GROUPS, MAESTRO, PAPER_TASKS
from pipeline.report.paper.comparison import Comparison, compare
from pipeline.report.paper.settings import paper_settings
from pipeline.report.paper.tables import ModelRow, Table
from pipeline.report.score_file import Score
from pipeline.report.score_table import ScoreTable, TaskScores

ESC50, GUNSHOT = "esc50-v2.0.0-full", "gunshot_triangulation-v1.0-full"
CREMA = ("tfds_crema_d-1.0.0-full", "top1_acc")
PAPER = {"source": "audioset", "encoder": "audiontt", **paper_settings("audiontt")}


def table_of(group, *measured):
    return Table(group, GROUPS[group], (*tables.published_rows(), *measured))


def row_of(table, model):
    return next(row for row in table.rows if row.model == model)


def test_the_paper_has_18_tasks_in_the_kit_s_names():
    assert len(PAPER_TASKS) == 18
    assert {group: len({c.task for c in columns}) for group, columns in GROUPS.items()} == {
        "speech": 6, "environmental sound": 3, "music": 7, "timestamps": 2}  # fmt: skip
    beehive = {"beehive_states_fold0-v2-full", "beehive_states_fold1-v2-full"}
    assert beehive | PAPER_TASKS == set(HEAR_TASKS)  # the paper leaves the beehive tasks out


def test_every_published_row_has_every_score_that_the_paper_gives():
    absent = {
        (row.model, column.name)
        for row in tables.published_rows()
        for columns in GROUPS.values()
        for column in columns
        if column.key not in row.scores
    }
    # The random encoders' results have the first metric of each task only.
    assert absent == {
        (model, name)
        for model in ("random AudioNTT", "random ViT_C-B (16x8)")
        for name in ("DCASE error rate", "MAESTRO onset+offset F")
    }


@pytest.mark.parametrize(
    ("group", "model", "mean", "percent"),
    [  # as printed in the paper's tables 1 to 3
        ("speech", "CREPE", 0.244, None),
        ("speech", "BYOL-A*", 0.626, None),
        ("speech", "ABT AudioNTT", 0.594, 17),
        ("speech", "ABT ViT_C-B (16x8)", 0.548, 140),
        ("environmental sound", "ABT AudioNTT", 0.721, 24),
        ("environmental sound", "ABT ViT_C-B (16x8)", 0.666, 49),
        ("music", "CREPE", 0.856, None),
        ("music", "ABT AudioNTT", 0.838, -1),
        ("music", "ABT ViT_C-B (16x8)", 0.769, 15),
        ("timestamps", "wav2vec 2.0", 0.351, None),
        ("timestamps", "ABT AudioNTT", 0.405, 27),
        ("timestamps", "ABT ViT_C-B (16x8)", 0.374, -10),
    ],
)
def test_means_and_percentages_are_the_paper_s(group, model, mean, percent):
    table = table_of(group)
    row = row_of(table, model)
    assert table.mean(row) == pytest.approx(mean, abs=1.1e-3)
    increase = table.over_random(row)
    assert increase is percent is None or increase == pytest.approx(percent, abs=0.7)


def test_the_best_two_are_the_paper_s_and_lower_error_rates_are_better():
    speech, events = table_of("speech"), table_of("timestamps")
    crema, error_rate = GROUPS["speech"][0], GROUPS["timestamps"][1]
    best = [row.model for row in speech.rows if speech.is_top(row, crema)]
    assert best == ["wav2vec 2.0", "BYOL-A*"]
    lowest = [row.model for row in events.rows if events.is_top(row, error_rate)]
    assert lowest == ["ABT AudioNTT", "ABT ViT_C-B (16x8)"]


def test_no_mean_is_given_over_fewer_columns():
    measured = ModelRow("ours", False, {(ESC50, "top1_acc"): 0.9, (GUNSHOT, "top1_acc"): 0.8})
    table = table_of("environmental sound", measured)
    assert table.mean(measured) is None
    assert list(rendering.cells(table, measured)) == [
        ("0.900", True), ("–", False), ("0.800", False), ("–", False)]  # fmt: skip
    assert tables.group_means(measured, [ESC50]) == {"environmental": None}


def test_a_measured_gain_refers_to_the_measured_random_encoder():
    keys = [column.key for column in GROUPS["environmental sound"]]
    ours = ModelRow("pretrained", False, dict.fromkeys(keys, 0.75), random="random")
    random = ModelRow("random", False, dict.fromkeys(keys, 0.5), random="random")
    table = table_of("environmental sound", ours, random)
    assert table.over_random(ours) == 50.0
    assert list(rendering.cells(table, ours))[-1][0] == "0.750 (+50 %)"
    assert list(rendering.cells(table, random))[-1][0] == "0.500"


@pytest.mark.parametrize(
    ("task", "metric", "score", "expected"),
    [
        (ESC50, "top1_acc", 0.786 * 1.139, "within"),
        (ESC50, "top1_acc", 0.786 * 1.141, "above"),
        (ESC50, "top1_acc", 0.65, "below"),
        (MAESTRO, "event_onset_50ms_fms", 0.0, "below"),  # of 0.048
        (DCASE, "segment_1s_er", 0.15, "above"),  # an error rate
        (DCASE, "segment_1s_er", 0.35, "below"),
    ],
)
def test_verdicts_allow_for_the_noise_of_the_task(task, metric, score, expected):
    (verdict,) = comparison.verdicts(ModelRow("ours", False, {(task, metric): score}), "audiontt")
    assert verdict.text == expected


@pytest.mark.parametrize(
    ("first", "again"),  # HEAR's wav2vec2 and a public second run of it
    [(0.561, 0.614), (0.848, 0.771), (0.692, 0.664), (0.828, 0.755), (0.493, 0.558),
     (0.656, 0.680)],
)  # fmt: skip
def test_a_model_that_is_scored_again_is_within_the_noise(first, again):
    column = GROUPS["speech"][0]
    assert comparison.Verdict(column, again, first).text == "within"


def test_random_weights_do_not_compete_for_the_best_two():
    for group, columns in GROUPS.items():
        table = table_of(group)
        for column in columns:
            best = [row for row in table.rows if table.is_top(row, column)]
            assert len(best) >= 2 and not any(row.model.startswith("random") for row in best)
    gunshot = GROUPS["environmental sound"][2]
    best = [row.model for row in table_of("environmental sound").rows
            if table_of("environmental sound").is_top(row, gunshot)]  # fmt: skip
    assert "BYOL-A*" in best  # random ViT_C has more


def test_there_is_no_verdict_for_an_encoder_that_the_paper_lacks():
    assert comparison.verdicts(ModelRow("ours", False, {CREMA: 0.6}), "vit") == []


def test_tasks_that_the_paper_lacks_get_a_table_of_their_own():
    own = ModelRow("pretrained", False, {("birds-v1-full", "mAP"): 0.25}, note="1 seed")
    (table,) = tables.build_tables([own], ["birds-v1-full"], {"birds-v1-full": "mAP"})
    assert (table.group, [row.model for row in table.rows]) == ("other tasks", ["pretrained"])
    comparison = Comparison(own, (table,), (), ("not comparable",), {})
    text = rendering.to_markdown(comparison)
    assert "> not comparable" in text
    assert "| pretrained | measured, 1 seed | **0.250** | 0.250 |" in text


def own_table(*metrics):
    """A table of tasks that the paper lacks, by their first metrics; None: without any score."""
    rows = tuple(
        TaskScores(f"task{i}", f"task{i}", {
            "pretrained": scored(f"task{i}", "pretrained", 0.2, metric) if metric else None,
            "random": scored(f"task{i}", "random", 0.3, metric) if metric else None,
            "mel": scored(f"task{i}", "mel", 0.4, metric) if metric else None})
        for i, metric in enumerate(metrics)
    )  # fmt: skip
    models = ("pretrained", "random", "mel")
    scores = ScoreTable(rows, table_with([]).protocol, models)
    (table,) = compare(scores, PAPER, 0).tables
    return table


def test_a_task_without_any_score_keeps_its_column_and_leaves_no_mean():
    table = own_table("top1_acc", None, "mAP")
    assert rendering.header(table)[2:] == [
        "task0", "task1", "task2", "mean of 3 (over random)"]  # fmt: skip
    texts = [text for text, _ in rendering.cells(table, table.rows[0])]
    assert texts == ["0.200", "–", "0.200", "–"]


@pytest.mark.parametrize(
    ("metric", "best", "name"),
    [("segment_1s_er", (0, 2), "task1 ↓"), ("d_prime", (2, 0), "task1")],
)
def test_a_metric_that_is_not_a_share_is_not_averaged_and_the_lowest_error_rate_is_best(
    metric, best, name
):
    table = own_table("top1_acc", metric)
    assert rendering.header(table)[3:] == [name, "mean of 2 (over random)"]
    assert [table.mean(row) for row in table.rows] == [None, None, None]
    top = [table.is_top(row, table.columns[1]) for row in table.rows]
    assert {i for i, is_top in enumerate(top) if is_top} == set(best)


def test_the_csv_has_every_score_and_its_origin():
    ours = ModelRow("pretrained", False, {CREMA: 0.601}, note="3 seeds")
    built = tables.build_tables([ours], [CREMA[0]], {})
    rows = list(csv.DictReader(io.StringIO(rendering.to_csv(built))))
    assert len(rows) == 7 * 6 + 1
    assert rows[-1] == {"group": "speech", "task": CREMA[0], "metric": "top1_acc",
                        "model": "pretrained", "origin": "measured, 3 seeds",
                        "score": "0.601"}  # fmt: skip


def test_the_leaderboard_s_line_has_18_scores():
    row = next(row for row in tables.published_rows() if row.model == "ABT AudioNTT")
    head, values = csv.reader(io.StringIO(rendering.leaderboard(row)))
    assert len(head) == len(values) == 19
    assert dict(zip(head, values, strict=True))["fsd50k-v1.0-full"] == "0.474"


def scored(task, model, score, metric="top1_acc", **other):
    values = {"task": task, "model": model, "metric": metric, "score": score, "std": None,
              "grid": "default", "grid_points": 8} | other  # fmt: skip
    return Score.model_validate(values)


def table_with(tasks, points=8):
    """Scores of the two encoders, 0.7 and 0.5."""
    rows = tuple(
        TaskScores(task, task, {"pretrained": scored(task, "pretrained", 0.7, seeds=3),
                         "random": scored(task, "random", 0.5, seeds=3)})
        for task in tasks
    )  # fmt: skip
    protocol = ScoreParams(engine="batched", grid="default", grid_points=points, seeds=3)
    return ScoreTable(rows, protocol, ("pretrained", "random"))


def test_measured_rows_stand_beside_the_published_ones():
    tasks = [column.task for column in GROUPS["environmental sound"] if column.name != "FSD50K"]
    result = compare(table_with(tasks), PAPER, 0)
    (table,) = result.tables
    ours = [(row.model, row.origin) for row in table.rows if row.note[0] == "3"]
    assert ours == [("the pre-trained encoder", "measured, 3 seeds"),
                    ("the random encoder", "measured, 3 seeds")]  # fmt: skip
    assert [(v.column.name, v.text) for v in result.verdicts] == [
        ("ESC-50", "within"), ("Gunshot", "below")]  # fmt: skip
    assert result.means == {"environmental": None}
    assert result.warnings == (
        "16 of the paper's 18 tasks were not requested. Means are of whole groups.",
    )


def test_other_metrics_of_a_task_are_taken_from_its_score_file():
    metrics = {"event_onset_200ms_fms": 0.8, "segment_1s_er": 0.2}
    score = scored(DCASE, "pretrained", 0.8, "event_onset_200ms_fms", metrics=metrics)
    row = TaskScores(DCASE, "dcase", {"pretrained": score})
    table = ScoreTable((row,), table_with([]).protocol, ("pretrained",))
    (row,) = tables.measured_rows(table)
    assert row.scores == {(DCASE, name): value for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"params": PAPER | {"source": "sample"}}, "Pre-trained on 'sample'"),
        ({"left_out": 1234}, "without 1,234 clips of test splits"),
        ({"params": PAPER | {"encoder": "vit"}}, "The encoder is 'vit'"),
        ({"params": PAPER | {"pretrain.epochs": 20}}, "(theirs): pretrain.epochs = 20 (100)."),
        ({"scores": table_with(sorted(PAPER_TASKS), points=2)}, "2 grid points"),
    ],
)
def test_every_difference_from_the_paper_has_a_warning(changes, warning):
    arguments = {"scores": table_with(sorted(PAPER_TASKS)), "params": PAPER, "left_out": 0}
    assert not compare(**arguments).warnings
    (text,) = compare(**arguments | changes).warnings
    assert warning in text


def test_embeddings_without_the_wrapper_s_faults_have_a_warning():
    params = PAPER | {"hear.mode": "ours"}
    *_, warning = compare(table_with(sorted(PAPER_TASKS)), params, 0).warnings
    assert "the authors' wrapper with its faults" in warning


def test_no_warning_is_needed_where_there_is_nothing_published():
    params = PAPER | {"encoder": "vit", "source": "sample"}
    result = compare(table_with(["birds"], 2), params, 0)
    assert result.warnings == () and result.verdicts == ()
