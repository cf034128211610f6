import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from synthetic_run import TASKS, SyntheticRun, failed_row, ledger_row

from pipeline.core.stage import Stage, run
from pipeline.features import excluded
from pipeline.features.params import LogMelParams
from pipeline.hear.score.params import ScoreParams
from pipeline.leaks import table as leak_table
from pipeline.report import figures, html_page, inputs, probe_table, score_table
from pipeline.report.data_summary import summarize_data
from pipeline.report.paper.columns import PAPER_TASKS
from pipeline.report.results import Results, flatten
from pipeline.report.run_summary import summarize_correlation, summarize_loss
from stages.report import main

ROOT = Path(__file__).parents[1]
KIND, BEATS = TASKS
FIGURES = ("loss", "lr", "norms", "ranks", "dead", "speed", "wait", "before", "after")


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """A run in the current folder, with random 0.5, 0.25 and pre-trained 0.6, 0.3."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return SyntheticRun(tmp_path)


@pytest.fixture
def without_figures(monkeypatch):
    """Skip drawing in tests about something else."""
    monkeypatch.setattr(html_page, "draw_curves", lambda run: dict.fromkeys(FIGURES, ""))
    monkeypatch.setattr(html_page, "draw_probe", lambda probe: dict.fromkeys(probe.curves, ""))
    monkeypatch.setattr(html_page, "draw_clips", lambda run, ledger, count: [])


def page_of(made_up, runtimes=None):
    """The page, without the stage around it."""
    reports, data = made_up.root / "reports", made_up.root / "data"
    pretrain, tasks = made_up.params["pretrain"], made_up.params["probe"]["tasks"]
    epochs = pretrain["epochs"], pretrain["snapshot_epochs"]
    ledger = inputs.read_ledger(data / "ledger.csv")
    shown = {k: v for k, v in made_up.params.items() if k not in ("encoders", "sources")}
    encoder = made_up.params["encoder"]
    shown[f"encoders.{encoder}"] = made_up.params["encoders"][encoder]
    results = Results(
        pretraining=read_run(made_up),
        scores=read_table(made_up),
        probe=probe_table.read_probe(reports / "probe", tasks, *epochs),
        ledger=leak_table.mark(ledger, excluded.read(data / "excluded.csv")),
        leaks=leak_table.read(reports / "leaks", made_up.params["hear"]["tasks"]),
        label_names={"/m/09x0r": "Speech"},
        params=flatten(shown),
        runtimes=runtimes or {},
    )
    return html_page.render(results)


def read_run(made_up, encoder="audiontt"):
    """The outputs of pre-training."""
    speed = made_up.root / "reports" / "throughput.csv"
    return inputs.read_pretraining(made_up.root / "data" / "pretrained", encoder, speed)


def read_table(made_up):
    """The scores of the run."""
    protocol = ScoreParams(**made_up.params["score"])
    hear = made_up.params["hear"]
    folder = made_up.root / "reports" / "scores"
    return score_table.read_table(folder, hear["tasks"], protocol, hear["models"])


def text(page):
    """The page's words in one line, tables and figures' contents apart by spaces."""
    page = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    page = page.replace("<small>", "; ")
    page = re.sub(r"<(?!/?(small|sub|sup|em|strong|span|code))", " <", page)
    return " ".join(re.sub(r"<[^>]*>", "", page).split())


# ---- scores -----------------------------------------------------------------------------------


def test_metrics_are_the_scores_their_means_and_the_relative_increase(made_up, without_figures):
    table = read_table(made_up)
    metrics = score_table.metrics(table, loss=12.5)
    assert metrics["loss"] == 12.5
    assert metrics["score"] == {"mean": 0.45, "toy_kind": 0.6, "toy_beats": 0.3}
    assert metrics["random"] == {"mean": 0.375}
    assert metrics["over_random_percent"] == pytest.approx(100 * (0.45 - 0.375) / 0.375)
    assert set(metrics) == {"loss", "score", "random", "over_random_percent"}
    words = text(page_of(made_up))
    assert "mean score 0.450 on 2 tasks, +20% against the same encoder with random weights" in words
    assert "scene, multiclass top-1 accuracy 0.500 0.600 +0.100 +20%" in words
    assert "timestamp onset F1, 200 ms 0.250 0.300 +0.050 +20%" in words
    assert "Mean of 2 tasks 0.375 0.450 +0.075 +20%" in words


def test_the_increase_of_the_mean_is_not_the_mean_of_the_increases(made_up):
    made_up.score("pretrained", BEATS, 0.5)
    table = read_table(made_up)
    assert [row.percent for row in table.rows] == pytest.approx([20, 100])
    assert table.percent == pytest.approx(100 * (0.55 / 0.375 - 1))


@pytest.mark.parametrize(
    ("encoder", "clips", "shown"),
    [("vitc", 0, True), ("vitc", 512, False), ("audiontt", 0, False), ("vit", 0, False)],
)
def test_the_page_says_where_random_embeddings_are_nearly_equal(
    made_up, without_figures, encoder, clips, shown
):
    made_up.set("encoder", encoder)
    made_up.set("pretrain.random_calibration_clips", clips)
    words = text(page_of(made_up))
    assert ("the random ViT_C's batch norms have the statistics of" in words) == shown


def test_a_lower_score_and_a_cross_validated_one_are_written_as_such(made_up, without_figures):
    made_up.score("pretrained", KIND, 0.45, {"std": 0.0123})
    words = text(page_of(made_up))
    assert "0.500 0.450 ± 0.012 −0.050 −10%" in words


def test_a_score_over_a_random_score_of_zero_has_no_percentage(made_up, without_figures):
    made_up.score("random", KIND, 0.0)
    assert "0.000 0.600 +0.600 –" in text(page_of(made_up))


@pytest.mark.parametrize("gap", ["no file", "no score"])
@pytest.mark.parametrize("model", ["random", "pretrained"])
def test_a_missing_score_is_shown_and_that_model_has_no_mean(made_up, without_figures, gap, model):
    path = made_up.score(model, BEATS, None)
    if gap == "no file":
        path.unlink()
    table = read_table(made_up)
    metrics = score_table.metrics(table, loss=12.5)
    scores = {"mean": 0.45, "toy_kind": 0.6, "toy_beats": 0.3}
    if model == "random":
        assert metrics == {"loss": 12.5, "score": scores}
        assert ",0.3,,," in score_table.to_csv(table)
    else:
        assert metrics["score"] == {"toy_kind": 0.6}
        assert set(metrics) == {"loss", "score", "random"}
    words = text(page_of(made_up))
    gone = "missing" if gap == "no file" else "no number"
    row = f"{gone} 0.300" if model == "random" else f"0.250 {gone}"
    name = {"random": "random", "pretrained": "pre-trained"}[model]
    assert f"{row} – –" in words
    assert f"No mean of the {name} encoder: scores are missing for 1 of 2 tasks ({BEATS})." in words
    assert ("Mean of 2 tasks 0.375 – – –" in words) == (model == "pretrained")
    assert ("Mean of 2 tasks – 0.450 – –" in words) == (model == "random")
    assert ("mean score 0.450" in words) == (model == "random")


def test_an_error_rate_is_not_averaged_with_scores(made_up, without_figures):
    for model in ("pretrained", "random"):
        made_up.score(model, BEATS, 0.9, {"metric": "segment_1s_er"})
    assert "mean" not in score_table.metrics(read_table(made_up), loss=1.0)["score"]
    assert "No mean of the random encoder: segment_1s_er is an error rate." in text(
        page_of(made_up)
    )


def test_scores_of_tasks_no_longer_requested_do_not_count(made_up, without_figures):
    made_up.set("hear.tasks", [KIND])
    made_up.score("pretrained", "other_task-v1-full", 1.0)
    table, page = read_table(made_up), page_of(made_up)
    assert score_table.metrics(table, 1.0)["score"] == {"mean": 0.6, "toy_kind": 0.6}
    assert [line.split(",")[0] for line in score_table.to_csv(table).split()] == [
        "task",
        "toy_kind",
    ]
    assert BEATS not in page
    assert "other_task" not in page


@pytest.mark.parametrize(
    ("grid", "points", "published"),
    [("default", 8, True), ("default", 2, False), ("fast", 8, False)],
)
def test_only_hears_own_protocol_is_without_a_note(
    made_up, without_figures, grid, points, published
):
    made_up.set("score.grid", grid)
    made_up.set("score.grid_points", points)
    for model in ("pretrained", "random"):
        for task in TASKS:
            made_up.score(model, task, 0.5)
    words = text(page_of(made_up))
    assert f"grid {grid}, {points} grid points" in words
    assert ("not with published ones" in words) is not published


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "esc50-v2.0.0-full"}, r"holds the score of esc50.*dvc repro"),
        ({"model": "random"}, r"holds the score of toy_kind.* \(random\)"),
        (
            {"grid": "default", "grid_points": 8},
            r"grid default, 8 points, expected score.grid = fast, score.grid_points = 2\.",
        ),
        ({"score": "high"}, r"toy_kind-v1-small.json is not a score file: score: .*dvc repro"),
        ({"score": float("nan")}, r"is not a score file: score: "),
        ({"metric": "mAP"}, r"mAP of the pre-trained encoder cannot be compared with top1_acc"),
    ],
)
def test_a_score_file_of_something_else_is_refused(made_up, changes, message):
    made_up.score("pretrained", KIND, 0.6, changes)
    with pytest.raises(ValueError, match=message):
        read_table(made_up)


@pytest.mark.parametrize(
    ("metric", "score", "possible"),
    [
        ("top1_acc", 7.5, False),
        ("mAP", -0.1, False),
        ("event_onset_200ms_fms", 1.0001, False),
        ("top1_acc", 0.0, True),
        ("aucroc", 1.0, True),
        ("d_prime", 2.5, True),
        ("segment_1s_er", 1.7, True),
    ],
)
def test_a_score_that_its_metric_cannot_have_is_refused(made_up, metric, score, possible):
    for model in ("pretrained", "random"):
        made_up.score(model, KIND, score, {"metric": metric})
    if possible:
        assert read_table(made_up).rows[0].pretrained.score == score
    else:
        with pytest.raises(ValueError, match=rf"{metric} = {score}, which must be from 0 to 1"):
            read_table(made_up)


def test_a_damaged_score_file_is_refused(made_up):
    made_up.score("pretrained", KIND, 0.6).write_text('{"task": ')
    with pytest.raises(ValueError, match=r"toy_kind-v1-small.json is not a score file: .*JSON"):
        read_table(made_up)


def test_column_names_drop_the_version_and_keep_the_mode_that_tells_tasks_apart():
    names = {
        "speech_commands-v0.0.2-5h": "speech_commands_5h",
        "speech_commands-v0.0.2-full": "speech_commands",
        "nsynth_pitch-v2.2.3-50h": "nsynth_pitch_50h",
        "libricount-v1.0.0-hear2021-full": "libricount",
        "sonicpi_kind-v1-small": "sonicpi_kind",
        "esc50-v2.0.0-small": "esc50_small",
        "esc50-v2.0.0-full": "esc50_full",
        "toy-v1.0-full": "toy-v1_0-full",
        "toy-v1.1-full": "toy-v1_1-full",
        "plain": "plain",
    }
    assert score_table.short_names(list(names)) == names


def test_a_tasks_column_does_not_depend_on_the_other_mode_being_there():
    for tasks in (["speech_commands-v0.0.2-5h"], ["speech_commands-v0.0.2-full"]):
        both = ["speech_commands-v0.0.2-5h", "speech_commands-v0.0.2-full"]
        assert score_table.short_names(tasks).items() <= score_table.short_names(both).items()


# ---- loss and correlation ---------------------------------------------------------------------


def test_the_loss_is_the_mean_of_the_last_epoch_beside_the_noise_floor(made_up, without_figures):
    history = inputs.read_history(made_up.root / "data" / "pretrained" / "history.csv")
    epochs = inputs.read_epochs(made_up.root / "data" / "pretrained" / "epochs.csv")
    rows = pd.read_csv("data/pretrained/history.csv")
    last = epochs["loss"].iloc[-1]
    floor = 0.005 * 256 * 255 / 32
    assert summarize_loss(history, epochs)["after"]["loss"] == pytest.approx(last, abs=1e-6)
    words = text(page_of(made_up))
    assert f"Loss {rows['loss'][0]:.2f} {last:.2f}" in words
    assert f"Noise floor λ D (D − 1) / B {floor:.2f} {floor:.2f}" in words
    assert "λ = 0.005, D = 256, B = 32" in words
    assert "20 epochs; 140 steps of 32 clips" in words


def test_correlation_is_summarized_on_and_off_the_diagonal():
    matrix = np.array([[1.0, 0.3, 0.0], [-0.3, 0.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
    summary = summarize_correlation(matrix)
    assert summary["diagonal"] == pytest.approx(0.5)
    assert summary["others"] == pytest.approx(math.sqrt(2 * 0.09 / 6))


def test_correlation_before_and_after_are_not_exchanged(made_up, without_figures):
    words = text(page_of(made_up))
    assert "Before pre-training: mean of the diagonal 0.100" in words
    assert "After pre-training: mean of the diagonal 0.900" in words


# ---- telemetry --------------------------------------------------------------------------------


def test_the_best_epoch_and_the_first_that_is_as_good_as_the_last_are_named(
    made_up, without_figures
):
    words = text(page_of(made_up))
    best = f"epoch 10, linear score 0.800 ({KIND}), in data/pretrained/snapshots/epoch-00010."
    assert f"Best: {best} Epoch 10 (0.800) is already as good as the last one, 20 (0.700)." in words
    made_up.probe(KIND, {0: 0.9, 5: 0.1, 10: 0.5, 15: 0.6, 20: 0.7})
    words = text(page_of(made_up))
    assert "Best: epoch 0, linear score 0.900" in words
    assert "in data/random. Epoch 0 (0.900) is already as good" in words
    made_up.probe(KIND, {0: 0.1, 5: 0.1, 10: 0.5, 15: 0.6, 20: 0.7})
    words = text(page_of(made_up))
    assert f"Best: epoch 20, linear score 0.700 ({KIND}), in data/pretrained." in words
    assert "already as good" not in words
    assert "Snapshots are missing" not in words


def test_a_probe_of_two_tasks_gives_their_mean(made_up, without_figures):
    made_up.set("probe.tasks", [KIND, BEATS])
    made_up.probe(BEATS, {0: 0.3, 5: 1.0, 10: 0.7, 15: 0.75, 20: 0.7})
    assert "Best: epoch 5, linear score 0.800 (mean of 2 tasks)" in text(page_of(made_up))


def test_missing_snapshots_and_curves_are_named(made_up, without_figures, caplog):
    made_up.probe(KIND, {0: 0.3, 5: 0.6, 20: 0.7})
    made_up.set("probe.tasks", [KIND, BEATS])
    main(Stage("report"))
    words = text((made_up.root / "reports" / "index.html").read_text())
    assert "Snapshots are missing: there is no score for epochs 10, 15." in words
    assert f"There is no curve for {BEATS}." in words
    assert "no encoder of epochs 10, 15: snapshots are missing" in caplog.text
    assert f"No probe of {BEATS}." in caplog.text


def test_scores_of_another_encoder_are_left_out(made_up, without_figures, caplog):
    embeddings = f"data/embeddings/pretrained/{KIND}"
    score = f"reports/scores/pretrained/{KIND}.json"
    stages = {
        "pretrain": {"outs": [{"path": "data/pretrained", "md5": "new"}]},
        "embed@x": {
            "deps": [{"path": "data/pretrained", "md5": "old"}],
            "outs": [{"path": embeddings, "md5": "1"}],
        },
        "score@x": {
            "deps": [{"path": embeddings, "md5": "1"}],
            "outs": [{"path": score, "md5": "2"}],
        },
    }
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    main(Stage("report"))
    assert f"{score} is of an earlier run and left out: embed@x was run with another" in caplog.text
    metrics = json.loads(Path("reports/metrics.json").read_text())
    assert "mean" not in metrics["score"]
    assert metrics["random"]["mean"] > 0


def test_a_task_that_was_not_compared_with_the_clips_is_named(made_up, without_figures):
    Path("reports/leaks", f"{BEATS}.json").unlink()
    main(Stage("report"))
    words = text(Path("reports/index.html").read_text())
    assert f"{BEATS} not compared: stage leaks has no result for it" in words


def test_the_page_says_what_is_turned_off(made_up, without_figures):
    made_up.set("probe.tasks", [])
    made_up.set("pretrain.rank_clips", 0)
    main(Stage("report"))
    assert (made_up.root / "reports" / "probe.csv").read_text() == "epoch,knn,linear\n"
    words = text(page_of(made_up))
    assert "Off (probe.tasks is empty)." in words
    assert "Not measured (pretrain.rank_clips is 0)." in words
    made_up.set("probe.tasks", [KIND])
    made_up.set("pretrain.snapshot_epochs", 0)
    made_up.probe(KIND, {0: 0.3, 20: 0.7})
    words = text(page_of(made_up))
    assert "Only the initial and the last encoder are kept" in words
    assert "Best: epoch 20, linear score 0.700" in words


EMPTY = {
    "no rows": lambda table: table.iloc[:0],
    "no columns": lambda table: pd.DataFrame(),
    "no numbers": lambda table: table * float("nan"),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_a_curve_without_points_is_an_empty_figure(made_up, kind):
    run = read_run(made_up)
    curves = [EMPTY[kind](table) for table in (run.history, run.epochs, run.throughput)]
    svg = figures.telemetry(*curves) | {"loss": figures.learning_curves(curves[0])}
    assert len(svg) == 7
    assert all("nothing yet" in figure for figure in svg.values())


def test_one_point_is_a_dot_in_every_figure(made_up, monkeypatch):
    run = read_run(made_up)
    tables = [table.iloc[1:2] for table in (run.history, run.epochs, run.throughput)]
    one = pd.DataFrame({"epoch": [0], "knn": [0.5], "linear": [0.6]})

    def drawn():
        svg = figures.telemetry(*tables) | {"loss": figures.learning_curves(tables[0])}
        return svg | {"probe": figures.probe(one, 0, "probe-0")}

    with_dots = drawn()
    monkeypatch.setattr(figures, "FEW_POINTS", 0)
    for name, figure in drawn().items():
        assert "nothing yet" not in figure
        assert with_dots[name].count("<use") > figure.count("<use"), name


def test_norms_of_zero_are_left_out_of_a_logarithmic_figure(made_up):
    history = read_run(made_up).history
    history.loc[3, "encoder_grad_norm"] = 0.0
    history.loc[4, "projector_grad_norm"] = float("inf")
    assert "nothing yet" not in figures.telemetry(history, history, history)["norms"]


# ---- data -------------------------------------------------------------------------------------


def test_every_segment_is_obtained_or_counted_with_its_reason(made_up, without_figures):
    rows = [ledger_row(row) for row in range(6)]
    rows += [failed_row(6, "resample", "silent", "peak -90 dB")]
    rows += [failed_row(7 + i, "download", "gone", f"toy{7 + i:08d} was removed") for i in range(3)]
    made_up.ledger(rows)
    words = text(page_of(made_up))
    assert "requested 10 100.0% 0.03" in words
    assert "failed: gone download 3 30.0% failed: silent resample 1 10.0%" in words
    assert "obtained 6 60.0% 0.01" in words  # 6 clips of 9 s
    assert "download gone … was removed 3 toy00000007_30000, toy00000008_30000" in words
    assert "0.01 h; 6 of 10 requested clips" in words


def test_clips_of_test_splits_are_counted_by_task_and_excluded_from_the_totals(
    made_up, without_figures
):
    leaky = ["toy00000003_30000", "toy00000004_30000"]
    made_up.leaks({KIND: leaky, BEATS: []}, tuple(leaky))
    words = text(page_of(made_up))
    assert f"{KIND} 1,200 3 2 0 2 left out" in words
    assert f"{BEATS} 1,200 3 0 0 0 nothing to do Clips" in words
    assert "requested 20 100.0% 0.06 left out: leak exclude 2 10.0% used 18 90.0% 0.04" in words
    assert "on 18 clips" in words
    reason = "exclude leak it is in the test split of a task 2 toy00000003_30000, toy00000004_30000"
    assert reason in words


def test_leaks_that_are_only_counted_stay_in_the_totals(made_up, without_figures):
    made_up.set("leaks.policy", "report")
    made_up.leaks({KIND: ["toy00000003_30000"], BEATS: []})
    words = text(page_of(made_up))
    assert f"{KIND} 1,200 3 1 0 1 counted only: pre-trained on them" in words
    assert "obtained 20 100.0%" in words
    assert "left out" not in words


def test_a_clip_that_failed_earlier_keeps_its_status():
    ledger = pd.DataFrame([failed_row(0, "download", "gone", "404"), ledger_row(1), ledger_row(2)])
    marked = leak_table.mark(ledger, list(ledger["clip_id"][:2]))
    assert marked["status"].tolist() == ["gone", "leak", "ok"]
    assert ledger["status"].tolist() == ["gone", "ok", "ok"]


def test_labels_are_counted_over_obtained_clips_only():
    rows = [ledger_row(row) for row in range(8)] + [failed_row(8, "download", "gone", "gone")]
    summary = summarize_data(pd.DataFrame(rows).replace({"duration_s": {"": 0}}))
    assert summary.labels == [("/m/09x0r", 8), ("/m/04rlf", 2)]
    assert summary.obtained_hours == pytest.approx(8 * 9 / 3600)


def test_labels_are_shown_with_their_names_if_known(made_up, monkeypatch):
    monkeypatch.setattr(html_page, "draw_curves", lambda run: dict.fromkeys(FIGURES, ""))
    monkeypatch.setattr(figures, "clip_and_views", lambda *args: "<svg></svg>")
    words = text(page_of(made_up))
    assert "Clips Speech /m/09x0r 20 /m/04rlf 5" in words
    assert "toy00000000_30000 Speech /m/09x0r, /m/04rlf" in words


def test_names_of_labels_are_read_as_audioset_writes_them(tmp_path):
    path = tmp_path / "labels.csv"
    assert inputs.read_label_names(path) == {}
    path.write_text('index,mid,display_name\n0,/m/02zsn,"Female speech, woman speaking"\n')
    expected = {"/m/02zsn": "Female speech, woman speaking"}
    assert inputs.read_label_names(path) == expected
    path.write_text("mid,name\n/m/02zsn,Speech\n")
    with pytest.raises(ValueError, match=r"labels\.csv.*class_labels_indices\.csv"):
        inputs.read_label_names(path)


def test_the_sample_names_every_label_that_it_has():
    sample = ROOT / "data" / "sample"
    names = inputs.read_label_names(sample / "labels.csv")
    segments = (sample / "segments.csv").read_text()
    used = set(re.findall(r"/[mt]/\w+", segments))
    assert used == set(names)
    table = (sample / "README.md").read_text()
    assert all(f"| `{mid}` | {name} |" in table for mid, name in names.items())


def test_parameters_are_written_as_in_params_yaml(made_up, without_figures):
    made_up.set("augment.rlf", False)
    words = text(page_of(made_up))
    assert "augment.mixup true" in words
    assert "augment.rlf false" in words
    assert f"hear.tasks {KIND}, {BEATS}" in words


def test_only_ten_labels_and_twenty_reasons_are_listed_and_the_rest_is_counted(
    made_up, without_figures
):
    rows = [ledger_row(row, labels=f"/m/{row:02d}") for row in range(12)]
    rows += [failed_row(12 + i, "download", "gone", f"reason {'x' * i}") for i in range(23)]
    made_up.ledger(rows)
    words = text(page_of(made_up))
    assert "The most frequent 10 of 12 labels" in words
    assert "3 more reasons, for 3 clips" in words


def test_a_run_in_which_nothing_failed_says_so(made_up, without_figures):
    words = text(page_of(made_up))
    assert "Every requested segment was obtained." in words
    assert "Reasons" not in words


def test_hostile_text_stays_text(made_up, without_figures):
    hostile = "<script>alert(1)</script>\"'&<img src=x onerror=alert(2)>{{ 7 * 7 }}"
    row = failed_row(1, hostile, hostile, hostile) | {"clip_id": hostile}
    made_up.ledger([ledger_row(0, labels=hostile), row])
    page = page_of(made_up)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page


# ---- the page ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory):
    """A page with all its figures."""
    return page_of(SyntheticRun(tmp_path_factory.mktemp("run")))


def test_the_page_is_one_small_file_that_loads_nothing(whole_page):
    assert len(whole_page.encode()) < 2_000_000
    shown = "https://zenodo.org/api"  # a parameter, as text
    assert whole_page.count("http") == whole_page.count(f'<td class="code">{shown}')
    loaded = re.findall(r"(?:src|href|srcset|data|action)=\"([^\"]*)\"", whole_page)
    assert {address[:5] for address in loaded if not address.startswith("#")} == {"data:"}
    assert set(re.findall(r"url\((.)", whole_page)) == {"#"}
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import", whole_page)
    assert whole_page.count("<svg") == whole_page.count("</svg>") == len(FIGURES) + 1 + 4


def test_ids_are_unique_and_every_reference_meets_one(whole_page):
    ids = re.findall(r'\bid="([^"]*)"', whole_page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', whole_page)) <= set(ids)


def test_run_times_are_all_that_differs_between_two_pages_of_a_run(whole_page, made_up):
    again = page_of(made_up, {"pretrain": 200.4})
    table = re.compile(r'<table id="runtimes">.*?</table>', re.DOTALL)
    assert table.sub("", again) == table.sub("", whole_page)
    assert "3 min 20 s" in again


def test_run_times_are_summed_over_tasks_and_gaps_are_named(made_up, without_figures):
    seconds = {f"score-{KIND}-pretrained": 30.0, f"score-{BEATS}-random": 31.0, "download": 4.25}
    seconds |= {f"hear_tasks-{task}": 1.0 for task in TASKS} | {"score-removed_task-random": 1000.0}
    words = text(page_of(made_up, seconds))
    assert "download 4.2 s resample not run here (cached)" in words
    assert "hear_tasks 2.0 s 2 instances" in words
    assert "score 1 min 1 s 2 of 4 instances; the others not run here (cached)" in words


@pytest.mark.parametrize(("asked", "shown"), [(2, [0, 3]), (6, [0, 1, 2, 3, 4, 5]), (9, range(6))])
def test_the_clips_shown_are_from_all_over_the_examples(made_up, monkeypatch, asked, shown):
    monkeypatch.setattr(figures, "clip_and_views", lambda *args: "<svg></svg>")
    run = read_run(made_up)
    ledger = inputs.read_ledger(made_up.root / "data" / "ledger.csv")
    clips = html_page.draw_clips(run, ledger, asked)
    assert [clip["id"] for clip in clips] == [f"toy{i:08d}_30000" for i in shown]
    assert clips[0]["labels"] == ["/m/09x0r", "/m/04rlf"]


def test_the_page_explains_fewer_clips_than_requested(made_up, without_figures):
    words = text(page_of(made_up))
    assert "report.clips asks for 4 clips; pre-training has kept 0." in words


def test_mel_bins_have_the_front_ends_center_frequencies():
    params = LogMelParams(
        sample_rate=16000,
        n_fft=1024,
        win_length=1024,
        hop_length=160,
        n_mels=64,
        f_min=60.0,
        f_max=7800.0,
    )
    low, high = (2595 * math.log10(1 + f / 700) for f in (60, 7800))
    for bin_ in (0, 17, 63):
        center = low + (high - low) * (bin_ + 1) / 65  # 64 triangles have 66 edges
        hertz = 700 * (10 ** (center / 2595) - 1)
        assert figures.mel_bin(hertz, params) == pytest.approx(bin_)


def test_a_long_curve_is_thinned_to_means():
    history = pd.DataFrame({"step": np.arange(10_000), "loss": np.arange(10_000) % 2})
    curve = figures.thin(history)
    assert len(curve) == figures.MAX_POINTS
    assert curve["loss"].to_numpy() == pytest.approx(0.5)
    assert curve["step"].iloc[0] == pytest.approx(9.5)


def test_color_limits_leave_out_the_most_extreme_values_only():
    pictures = np.linspace(-1.9, 2.1, 10_000).reshape(1, 100, 100)
    pictures[0, 0, 0] = -100
    assert figures.color_limits(pictures) == (-2.0, 2.5)


# ---- inputs -----------------------------------------------------------------------------------


def read_inputs(made_up):
    """Read everything but the scores."""
    inputs.read_ledger(made_up.root / "data" / "ledger.csv")
    read_run(made_up)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("ledger.csv", "dvc repro logmel"),
        ("pretrained/encoder.json", "dvc repro pretrain"),
        ("pretrained/history.csv", "dvc repro pretrain"),
        ("pretrained/epochs.csv", "dvc repro pretrain"),
        ("../reports/throughput.csv", "dvc repro pretrain"),
        ("pretrained/correlation.safetensors", "dvc repro pretrain"),
        ("pretrained/views.safetensors", "dvc repro pretrain"),
    ],
)
def test_a_missing_or_damaged_file_is_named_with_the_remedy(made_up, name, remedy):
    path = made_up.root / "data" / name
    path.write_bytes(path.read_bytes()[:3])
    with pytest.raises(ValueError, match=rf"{name}.*{remedy}"):
        read_inputs(made_up)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"There is no .*{name}\. .*{remedy}"):
        read_inputs(made_up)


def test_an_encoder_other_than_the_requested_one_is_refused(made_up):
    with pytest.raises(ValueError, match=r"encoder.json is of encoder audiontt, not vitc\. Run"):
        read_run(made_up, "vitc")


def test_curves_with_a_value_that_is_not_a_number_are_refused(made_up):
    path = made_up.root / "data" / "pretrained" / "history.csv"
    lines = path.read_text().splitlines()
    lines[3] = "2,0.3,nan,1,1,1,0.1"
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"history.csv, row 3: not all values are finite"):
        inputs.read_history(path)


@pytest.mark.parametrize("shapes", [((4, 4), (4, 3)), ((4, 4), (5, 5)), ((16,), (16,))])
def test_matrices_of_a_wrong_shape_are_refused(made_up, shapes):
    before, after = (np.zeros(shape, np.float32) for shape in shapes)
    path = made_up.root / "data/pretrained/correlation.safetensors"
    save_file({"before": before, "after": after}, path)
    with pytest.raises(
        ValueError, match=r"correlation.safetensors: expected two square matrices, got"
    ):
        read_inputs(made_up)


def test_views_of_a_wrong_shape_are_refused(made_up):
    wrong = {name: np.zeros((2, 64, 96), np.float32) for name in ("crop", "view_1", "view_2")}
    path = made_up.root / "data/pretrained/views.safetensors"
    save_file(wrong, path, {"clip_id": "a\nb\nc"})
    with pytest.raises(
        ValueError, match=r"views.safetensors: expected .* \[clips, mel bins, frames\]"
    ):
        read_inputs(made_up)


# ---- the stage --------------------------------------------------------------------------------


def test_the_stage_writes_the_page_the_metrics_and_the_table(made_up, without_figures, caplog):
    caplog.set_level("INFO")
    main(Stage("report"))
    reports = made_up.root / "reports"
    assert "mean score of the pre-trained encoder: 0.450" in caplog.text
    assert (reports / "index.html").read_text().startswith("<!DOCTYPE html>")
    metrics = json.loads((reports / "metrics.json").read_text())
    assert metrics["score"]["mean"] == 0.45
    assert metrics["loss"] == pytest.approx(pd.read_csv("data/pretrained/epochs.csv").loss.iloc[-1])
    table = pd.read_csv(reports / "scores.csv").set_index("task")
    assert table.loc["toy_beats", ["random", "pretrained"]].tolist() == [0.25, 0.3]
    assert (reports / "probe.csv").read_text().startswith("epoch,knn,linear\n0,0.27,0.3\n")


def test_all_parameters_of_the_run_are_listed_and_no_others(made_up, without_figures):
    main(Stage("report"))
    page = (made_up.root / "reports" / "index.html").read_text()
    listed = re.findall(r'<tr><td class="code">([a-z_0-9.]+)</td><td class="code">([^<]*)', page)
    assert ("pretrain.epochs", "20") in listed
    assert ("hear.tasks", f"{KIND}, {BEATS}") in listed
    keys = {key for key, _ in listed}
    assert "encoders.audiontt.optimizer.lr" in keys
    assert not {key for key in keys if key.startswith(("encoders.vit", "compute"))}
    assert ("probe.inverse_l2", "1.0") in listed


def test_the_stage_warns_of_missing_scores(made_up, without_figures, caplog):
    made_up.score("random", BEATS, None)
    main(Stage("report"))
    assert "No mean score of the random encoder: scores are missing for 1 of 2 tasks" in caplog.text


def test_nothing_is_written_and_no_traceback_shown_if_an_input_is_wrong(made_up, capsys):
    (made_up.root / "data" / "ledger.csv").write_text("clip_id,labels\n")
    with pytest.raises(SystemExit) as ended:
        run("report", main)
    assert ended.value.code == 1
    assert not (made_up.root / "reports" / "index.html").exists()
    assert not (made_up.root / "reports" / "metrics.json").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_scores_of_the_paper_s_tasks_appear_beside_its_rows(made_up, without_figures):
    tasks = sorted(PAPER_TASKS)
    made_up.set("hear.tasks", tasks)
    made_up.leaks({task: [] for task in tasks})
    for model, score in (("pretrained", 0.7), ("random", 0.5)):
        for task in tasks:
            made_up.score(model, task, score)
    page = page_of(made_up)
    assert page.count("<td>ABT AudioNTT</td>") == page.count("<td>the random encoder</td>") == 4
    assert "Scored with the grid" in page and "Pre-trained on" in page
    assert "The pre-trained encoder beside the paper" in page


def test_a_score_that_is_not_a_number_is_not_called_missing(made_up, without_figures):
    notes = {"score": "nan: no event is predicted, or there is none"}
    made_up.score("random", BEATS, None, {"notes": notes})
    words = text(page_of(made_up))
    assert "no number 0.300" in words
    assert f"1 of 2 tasks ({BEATS}: {notes['score']})." in words


def test_other_models_have_a_column_and_a_mean(made_up, without_figures):
    made_up.set("hear.models", ["pretrained", "random", "mel", "crepe"])
    for task, value in zip(TASKS, (0.7, 0.1), strict=True):
        made_up.score("mel", task, value)
    made_up.score("crepe", KIND, 0.9)
    table = read_table(made_up)
    metrics = score_table.metrics(table, loss=1.0)
    assert metrics["mel"] == {"mean": 0.4}
    assert "crepe" not in metrics
    rows = score_table.to_csv(table).splitlines()
    assert rows[0] == "task,metric,pretrained,random,difference,over_random_percent,mel,crepe"
    assert rows[1:] == [
        "toy_kind,top1_acc,0.6,0.5,0.1,20.0,0.7,0.9",
        "toy_beats,event_onset_200ms_fms,0.3,0.25,0.05,20.0,0.1,",
    ]
    words = text(page_of(made_up))
    assert "+20% 0.700 0.900" in words
    assert "Mean of 2 tasks 0.375 0.450 +0.075 +20% 0.400 –" in words
    assert "No mean of CREPE: scores are missing for 1 of 2 tasks (toy_beats-v1-small)." in words


def test_models_that_are_not_requested_are_not_missed(made_up, without_figures):
    """Their files, from an earlier run, are ignored."""
    made_up.set("hear.models", ["mel"])
    made_up.score("random", KIND, 7.5)
    for task in TASKS:
        made_up.score("mel", task, 0.25)
    table = read_table(made_up)
    assert set(score_table.metrics(table, loss=1.0)) == {"loss", "mel"}
    assert "No mean" not in text(page_of(made_up))
