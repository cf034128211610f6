"""The batched engine: its metrics, its random numbers, independent classifiers, refused input."""

import json
import math

import numpy as np
import pytest
import torch
from heareval.score import available_scores
from kit_in_process import write_checksum, write_embedded_task
from sklearn.metrics import average_precision_score

from pipeline.hear.score.batches import Batch, epoch_batches
from pipeline.hear.score.data import check_batches, read_data
from pipeline.hear.score.engine import evaluate
from pipeline.hear.score.ensemble import EnsembleAdam, MLPEnsemble, initial_state
from pipeline.hear.score.metrics import Metrics, accuracy, mean_average_precision
from pipeline.hear.score.params import ScoreParams
from pipeline.hear.score.protocol import folds, hyperparameter_grid
from pipeline.hear.score.random_streams import RandomStreams

CPU = torch.device("cpu")
PARAMS = ScoreParams(engine="batched", grid="default", grid_points=3, seeds=1)
OWN = {"hidden_dim": [16], "batch_size": [32], "max_epochs": [6], "patience": [3]}
METADATA = {"evaluation_params": {"task_specific_param_grid": OWN}}
USUAL = {"train": 90, "valid": 40, "test": 41}
FOLDS = {f"fold{i:02d}": 34 + i for i in range(4)}


def predictions(ties: bool):
    """Probabilities of three classifiers, and labels, of which class 3 has none."""
    rng = np.random.default_rng(0)
    probabilities = rng.random((3, 60, 5)).astype(np.float32)
    y = (rng.random((60, 5)) < 0.3).astype(np.uint8)
    y[:, 3] = 0
    return np.round(probabilities, 1) if ties else probabilities, y


@pytest.mark.filterwarnings("ignore:No positive class")
@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_is_sklearns(ties):
    probabilities, y = predictions(ties)
    result = mean_average_precision(torch.tensor(probabilities), torch.tensor(y))
    expected = [average_precision_score(y, each, average="macro") for each in probabilities]
    np.testing.assert_allclose(result, expected, rtol=1e-12)
    assert 0 < min(expected) < max(expected) < 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("name", "modulus"), [("top1_acc", None), ("chroma_acc", 12)])
def test_accuracies_are_hear_eval_kits(name, modulus, ties):
    probabilities, y = predictions(ties)
    wide, labels = np.tile(probabilities, (1, 1, 5)), np.tile(y, (1, 5))
    wide += np.random.default_rng(1).integers(0, 3, wide.shape)
    result = accuracy(torch.tensor(wide), torch.tensor(labels), modulus)
    function = available_scores[name](label_to_idx={})
    assert result.tolist() == [function(each, labels) for each in wide]


@pytest.mark.parametrize("name", ["top1_acc", "mAP", "aucroc"])
def test_validation_uses_the_first_metric_of_the_test(name):
    probabilities, y = predictions(ties=False)
    y[:, 3] = y[:, 2]
    metrics = Metrics([name, "d_prime"], list("abcde"))
    result = metrics.primary_of_all(torch.tensor(probabilities), torch.tensor(y))
    tests = [metrics.test(each, y) for each in probabilities]
    assert result == pytest.approx([test["test_score"] for test in tests], rel=1e-12)
    assert list(tests[0]) == ["test_score", f"test_{name}", "test_d_prime"]


def random_events(rng, files, per_file):
    """Events so dense that several may match one, on a grid so that some times coincide."""
    names = [f"{i}.wav" for i in range(files)]
    starts = {name: rng.integers(0, 60, rng.integers(0, per_file + 1)) * 50.0 for name in names}
    return {
        name: [
            {"label": f"l{rng.integers(2)}", "start": s, "end": s + 50.0 * rng.integers(1, 20)}
            for s in sorted(starts[name].tolist())
        ]
        for name in names
    }


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:divide by zero")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["both", "none estimated", "no reference", "another file"])
@pytest.mark.parametrize(
    "name",
    ["event_onset_200ms_fms", "event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms"],
)
def test_event_scores_are_sed_evals(name, kind, seed):
    rng = np.random.default_rng(seed)
    estimated, reference = random_events(rng, 3, 25), random_events(rng, 3, 25)
    if kind == "none estimated":
        estimated = {file: [] for file in estimated}
    if kind == "no reference":
        reference = {file: [] for file in reference}
    if kind == "another file":
        reference["9.wav"] = reference.pop("1.wav")
    expected = available_scores[name](label_to_idx={"l0": 0, "l1": 1})(estimated, reference)
    scores = Metrics([name], ["l0", "l1"]).functions[name](estimated, reference)
    np.testing.assert_equal(scores, expected)
    assert [type(value) for _, value in scores] == [type(value) for _, value in expected]


def hparams(**changes):
    usual = {"hidden_layers": 1, "hidden_dim": 64, "dropout": 0.1, "lr": 0.001}
    return usual | {"initialization": "xavier_uniform_"} | changes


def test_initial_weights_are_torchs_distributions():
    weights = RandomStreams(0, CPU).weights(0, hparams(hidden_dim=400), dim=100, classes=50)
    bound = math.sqrt(6 / (100 + 400))  # Xavier, gain 1
    assert weights["weight0"].abs().max() == pytest.approx(bound, rel=0.01)
    bound = math.sqrt(2) * math.sqrt(6 / (400 + 50))  # gain of ReLU
    assert weights["weight1"].abs().max() == pytest.approx(bound, rel=0.01)
    assert weights["bias0"].abs().max() == pytest.approx(1 / math.sqrt(100), rel=0.05)
    normal = RandomStreams(0, CPU).weights(
        0, hparams(hidden_dim=400, initialization="xavier_normal_"), 100, 50
    )
    assert normal["weight0"].std() == pytest.approx(math.sqrt(2 / (100 + 400)), rel=0.02)


def test_initial_weights_depend_on_seed_and_number_alone():
    first, again = (RandomStreams(1, CPU).weights(3, hparams(), 8, 2)["weight0"] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, RandomStreams(1, CPU).weights(4, hparams(), 8, 2)["weight0"])
    assert not torch.equal(first, RandomStreams(2, CPU).weights(3, hparams(), 8, 2)["weight0"])


def test_dropout_drops_each_classifiers_share():
    share = torch.tensor([0.0, 0.1, 0.5, 1.0])[:, None, None]
    mask = RandomStreams(0, CPU).dropout_mask(range(4), (4, 301, 999), share, (999,) * 4).double()
    result = 1 - mask.mean(dim=(1, 2))
    assert result[0] == 0
    assert result[1:3].tolist() == pytest.approx([0.1, 0.5], abs=0.003)
    assert result[3] > 0.9999
    columns = 1 - mask[1].mean(dim=0)  # no pattern along either dimension
    assert columns.std() == pytest.approx(math.sqrt(0.09 / 301), rel=0.1)


def ensemble_of(numbers, streams, dtype=torch.float64, **changes):
    grid = [hparams(lr=0.01 * (1 + number), hidden_layers=2, **changes) for number in numbers]
    states = [initial_state(streams, n, c, 8, 3, dtype) for n, c in zip(numbers, grid, strict=True)]
    return MLPEnsemble.from_states(numbers, grid, states, CPU)


def batch_of(rows, classifiers):
    rng = np.random.default_rng(0)
    x, target = torch.tensor(rng.standard_normal((rows, 8))), torch.arange(rows) % 3
    return Batch(x, target, (rows,) * classifiers)


def test_classifiers_of_an_ensemble_are_independent():
    streams = RandomStreams(0, CPU)
    together = EnsembleAdam(ensemble_of([0, 1, 2], streams, dropout=0.0))
    alone = EnsembleAdam(ensemble_of([1], streams, dropout=0.0))
    for _ in range(5):
        together.step(batch_of(20, 3), True, streams)
        alone.step(batch_of(20, 1), True, streams)
    for name, tensor in alone.ensemble.tensors.items():
        torch.testing.assert_close(together.ensemble.tensors[name][1], tensor[0], atol=1e-8, rtol=0)


def test_classifiers_that_continue_keep_their_optimizer_state():
    streams = RandomStreams(0, CPU)
    left, alone = (EnsembleAdam(ensemble_of([0, 1, 2], streams, dropout=0.0)) for _ in range(2))
    for step in range(6):
        alone.step(batch_of(20, 3), True, streams)
        left.step(batch_of(20, 3 if step < 3 else 2), True, streams)
        if step == 2:
            left = left.subset([0, 2])
    assert left.ensemble.numbers == [0, 2]
    for name, tensor in left.ensemble.tensors.items():
        torch.testing.assert_close(tensor, alone.ensemble.tensors[name][[0, 2]], atol=1e-8, rtol=0)


def test_padded_and_absent_rows_do_not_change_a_classifier():
    rows = [np.arange(20), np.arange(13), np.arange(8)]
    shared = batch_of(20, 1)
    streams = RandomStreams(0, CPU)
    ragged = EnsembleAdam(ensemble_of([0, 1, 2], streams, dropout=0.0))
    for each in epoch_batches(rows, 8, CPU):
        ragged.step(each.gather(shared.x, shared.target, torch.float64), True, streams)
    for number, own in enumerate(rows):
        alone = EnsembleAdam(ensemble_of([number], streams, dropout=0.0))
        for each in epoch_batches([own], 8, CPU):
            alone.step(each.gather(shared.x, shared.target, torch.float64), True, streams)
        for name, tensor in alone.ensemble.tensors.items():
            torch.testing.assert_close(
                ragged.ensemble.tensors[name][number], tensor[0], atol=1e-8, rtol=0
            )


@pytest.mark.parametrize("folds", [[0, 3, 2], [1, 2, 3, 0], [0, 1, 2]])
def test_batches_have_the_rows_of_their_folds_in_any_stored_order(folds):
    """Folds of equal sizes; one that is left out may lie between two that train."""
    x, target = torch.arange(50.0)[:, None], torch.arange(50)
    rows = np.concatenate([np.arange(10 * fold, 10 * fold + 10) for fold in folds])
    for size in (7, 20, 64):
        result = [
            b.gather(x, target, torch.float32) for b in epoch_batches([rows] * 2, size, x.device)
        ]
        assert torch.cat([batch.target for batch in result]).tolist() == rows.tolist()
        assert torch.cat([batch.x for batch in result])[:, 0].tolist() == rows.tolist()


@pytest.mark.parametrize("at_once", [0, 1])
@pytest.mark.parametrize("rows", [USUAL, FOLDS])
def test_scores_depend_on_the_seed_alone(tmp_path, rows, at_once):
    data = read_data(write_embedded_task(tmp_path / "toy", rows, **METADATA))
    results = [
        evaluate(data, PARAMS, CPU, RandomStreams(s, CPU), at_once=at_once) for s in (42, 42, 43)
    ]
    first, again, other = ([trial.history for trial in result.trials] for result in results)
    assert first == again
    assert results[0].raw == results[1].raw
    assert first != other


def test_embeddings_that_reveal_the_labels_score_high(tmp_path):
    own = {"evaluation_params": {"task_specific_param_grid": {**OWN, "max_epochs": [60]}}}
    data = read_data(write_embedded_task(tmp_path / "toy", USUAL, noise=0.05, **own))
    assert evaluate(data, PARAMS, CPU, RandomStreams(0, CPU)).raw["test"]["test_score"] > 0.9


def change(path, value):
    if path.suffix == ".npy":
        x = np.fromfile(path, np.float32)
        x[3 * 6 + 2] = value
        path.write_bytes(x.tobytes())
        write_checksum(path.parent, path.name.partition(".")[0])
    elif "labels" in path.name:
        content = json.loads(path.read_text())
        content[3] = value
        path.write_text(json.dumps(content))
    else:
        path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("valid.embeddings.npy", np.nan, r"valid.embeddings.npy, row 3 .*the value nan, all must"),
        ("train.embeddings.npy", -np.inf, r"train.embeddings.npy, row 3 .*the value -inf"),
        ("test.target-labels.json", ["cat"], r"test.target-labels.json, row 3 .*'cat' is not in"),
        ("test.target-labels.json", [], r"test.target-labels.json, row 3 .*0 labels, one is expec"),
        ("test.target-labels.json", ["l0", "l1"], r"row 3 .*2 labels, one is expected"),
        ("test.embedding-dimensions.json", [41, 7], r"of \[6, 7\] dimensions, which must be the"),
        (
            "test.embedding-dimensions.json",
            [42, 6],
            r"test.embeddings.npy has 984 bytes, expected 1008",
        ),
        ("test.embedding-dimensions.json", [0, 6], r"must be \[rows, dimensions\], got \[0, 6\]"),
    ],
)
def test_invalid_files_are_refused_by_name(tmp_path, file, value, message):
    folder = write_embedded_task(tmp_path / "toy", USUAL)
    change(folder / file, value)
    with pytest.raises(ValueError, match=message):
        read_data(folder)


def test_a_flipped_bit_in_embeddings_is_refused(tmp_path):
    path = write_embedded_task(tmp_path / "toy", USUAL) / "test.embeddings.npy"
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"test\.embeddings\.npy is damaged: its SHA-256 is"):
        read_data(path.parent)


def test_a_pickle_beside_the_labels_is_never_read(tmp_path):
    folder = write_embedded_task(tmp_path / "toy", USUAL)
    expected = read_data(folder)
    for split in ("train", "valid", "test"):
        (folder / f"{split}.target-labels.pkl").write_bytes(b"cbuiltins\nexit\n(tR.")
    np.testing.assert_array_equal(read_data(folder).y, expected.y)


@pytest.mark.parametrize("content", [5, [["l0"]] * 89 + ["l0"], [["l0"]] * 89 + [[0.5]], {}])
def test_anything_but_lists_of_labels_is_refused(tmp_path, content):
    path = write_embedded_task(tmp_path / "toy", USUAL) / "train.target-labels.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train\.target-labels\.json must be a list of lists"):
        read_data(path.parent)


def test_truncated_labels_are_refused(tmp_path):
    path = write_embedded_task(tmp_path / "toy", USUAL) / "train.target-labels.json"
    content = path.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"target-labels\.json is damaged or not a list"):
            read_data(path.parent)


def test_a_missing_row_of_labels_is_refused(tmp_path):
    path = write_embedded_task(tmp_path / "toy", USUAL) / "train.target-labels.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    with pytest.raises(ValueError, match="labels of 89 rows for 90 embeddings"):
        read_data(path.parent)


@pytest.mark.parametrize(
    ("timestamps", "message"),
    [
        ([["0.wav", 0.0]] * 40, "valid.*'0.wav': one timestamp, at least two"),
        ([["0.wav", 0.0]], "1 timestamps for 40 embeddings"),
    ],
)
def test_invalid_timestamps_are_refused(tmp_path, timestamps, message):
    rows = {"train": 40, "valid": 40, "test": 40}
    folder = write_embedded_task(tmp_path / "toy", rows, kind="event")
    change(folder / "valid.filename-timestamps.json", timestamps)
    with pytest.raises(ValueError, match=message):
        read_data(folder)


@pytest.mark.parametrize(
    ("rows", "files"),
    [({**USUAL, "train": 97}, "train"), ({**FOLDS, "fold02": 28}, r"fold02.*fold03")],
)
def test_a_last_batch_of_one_row_is_refused(tmp_path, rows, files):
    data = read_data(write_embedded_task(tmp_path / "toy", rows, **METADATA))
    grid = hyperparameter_grid("default", 3, data.task.metadata)
    with pytest.raises(ValueError, match=rf"toy: {files}.* one more than a multiple of batch_size"):
        check_batches(data, grid, folds(data.task.metadata))
    for each in grid:
        each["hidden_layers"] = 0  # no batch norm
    check_batches(data, grid, folds(data.task.metadata))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"layers": [1]}, "unknown setting 'layers', expected one of hidden_layers, "),
        ({"max_epochs": [2]}, "max_epochs = 2 is less than check_val_every_n_epoch = 3"),
    ],
)
def test_an_impossible_grid_of_a_task_is_refused(tmp_path, own, message):
    metadata = {"evaluation_params": {"task_specific_param_grid": {**OWN, **own}}}
    data = read_data(write_embedded_task(tmp_path / "toy", USUAL, **metadata))
    with pytest.raises(ValueError, match=message):
        evaluate(data, PARAMS, CPU, RandomStreams(0, CPU))


def test_several_postprocessings_that_are_not_compared_are_refused(tmp_path):
    rows = {"train": 40, "valid": 40, "test": 40}
    metadata = {"use_scoring_for_early_stopping": False, **METADATA}
    data = read_data(write_embedded_task(tmp_path / "toy", rows, kind="event", **metadata))
    with pytest.raises(ValueError, match=r"event_postprocessing_grid makes 2\. Leave one"):
        evaluate(data, PARAMS, CPU, RandomStreams(0, CPU))
