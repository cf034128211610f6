"""A synthetic run: every input of the report, in the documented formats, made in seconds.

run = SyntheticRun(tmp_path)        # writes params.yaml, data/ and reports/scores/ there
run.score("random", TASKS[0], 0.25) # add or replace a score
run.set("hear.tasks", [...])        # change a parameter
"""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML
from safetensors.numpy import save_file

PARAMS = YAML(typ="safe", pure=True).load(Path(__file__).parents[1] / "params.yaml")
PARAMS["pretrain"] |= {
    "epochs": 20,
    "batch_size": 32,
    "snapshot_epochs": 5,
}  # the expected numbers of the tests assume these
TASKS = ("toy_kind-v1-small", "toy_beats-v1-small")
METRICS = {"toy_kind-v1-small": "top1_acc", "toy_beats-v1-small": "event_onset_200ms_fms"}
SCORES = {"pretrained": (0.6, 0.3), "random": (0.5, 0.25)}
HISTORY_FIELDS = ["step", "epoch", "loss", "invariance", "redundancy", "noise_floor", "lr"]
HISTORY_FIELDS += ["lr_vectors", "encoder_grad_norm", "projector_grad_norm"]
HISTORY_FIELDS += ["encoder_weight_norm", "projector_weight_norm"]
PROBED = {0: 0.3, 5: 0.6, 10: 0.8, 15: 0.75, 20: 0.7}  # epoch: score of the linear classifier


class SyntheticRun:
    """Files of a run under `root`, with methods that change single ones."""

    def __init__(self, root: Path, dims: int = 24, steps_per_epoch: int = 7) -> None:
        self.root = root
        self.random = np.random.default_rng(0)
        self.params = copy.deepcopy(PARAMS)
        self.set("hear.tasks", list(TASKS))
        self.set("probe.tasks", [TASKS[0]])
        self.probe(TASKS[0], PROBED)
        for model, values in SCORES.items():
            for task, value in zip(TASKS, values, strict=True):
                self.score(model, task, value)
        self.ledger([ledger_row(row) for row in range(20)])
        self.leaks({task: [] for task in TASKS})
        self.encoder()
        self.history(steps_per_epoch)
        self.telemetry(steps_per_epoch)
        self.correlation(dims)
        self.views(clips=6)

    def set(self, key: str, value: Any) -> None:
        """Change one parameter, by its dotted key."""
        *sections, name = key.split(".")
        section = self.params
        for part in sections:
            section = section[part]
        section[name] = value
        if key == "probe.tasks":
            path = self.root / "reports" / "probed.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(value))
        YAML(typ="safe", pure=True).dump(self.params, self.root / "params.yaml")

    def score(
        self, model: str, task: str, score: float | None, changes: dict[str, Any] | None = None
    ) -> Path:
        """Write a score file; `changes` replace or add fields."""
        path = self.root / "reports" / "scores" / model / f"{task}.json"
        content = {
            "task": task,
            "model": model,
            "metric": METRICS.get(task, "top1_acc"),
            "score": score,
            "std": None,
            "metrics": {METRICS.get(task, "top1_acc"): score},
            "splits": {"test": {"test_score": score}},
            "grid": self.params["score"]["grid"],
            "grid_points": self.params["score"]["grid_points"],
            "hparams": {"lr": 0.001},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content | (changes or {})))
        return path

    def ledger(self, rows: list[dict[str, Any]]) -> None:
        """Write data/ledger.csv."""
        path = self.root / "data" / "ledger.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ledger_row(0)))
            writer.writeheader()
            writer.writerows(rows)

    def leaks(self, leaked: dict[str, list[str]], excluded: tuple[str, ...] = ()) -> None:
        """Write reports/leaks with the leaked clips of each task, and data/excluded.csv."""
        folder = self.root / "reports" / "leaks"
        folder.mkdir(parents=True, exist_ok=True)
        leak = {"split": "test", "file": "a.wav", "how": "audio"}
        for task, clips in leaked.items():
            content = {"task": task, "files": 1200, "unchecked": 3, "clips": 20}
            content["leaks"] = [{"clip_id": clip, **leak} for clip in clips]
            (folder / f"{task}.json").write_text(json.dumps(content))
        path = self.root / "data" / "excluded.csv"
        path.write_text("\n".join(["clip_id", *excluded]) + "\n")

    def encoder(self) -> None:
        """Write data/pretrained/encoder.json for the encoder that params.yaml names."""
        name = self.params["encoder"]
        content = {
            "encoder": name,
            "params": self.params["encoders"][name],
            "logmel": self.params["logmel"],
            "mean": -7.0,
            "std": 4.0,
            "crop_frames": self.params["pretrain"]["crop_frames"],
        }
        self._pretrain("encoder.json").write_text(json.dumps(content))

    def history(self, steps_per_epoch: int) -> None:
        """Write curves that fall from the value at initialization towards the noise floor."""
        floor = noise_floor(self.params)
        epochs = self.params["pretrain"]["epochs"]
        with self._pretrain("history.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HISTORY_FIELDS)
            for step in range(epochs * steps_per_epoch):
                done = step / (epochs * steps_per_epoch)
                invariance = 250 * np.exp(-3 * done) * (1 + 0.05 * self.random.standard_normal())
                redundancy = floor * (1 + 2 * np.exp(-8 * done))
                lr = 0.1 * min(1.0, step / steps_per_epoch) * (1 + np.cos(np.pi * done)) / 2
                loss = invariance + redundancy
                norms = [2 * loss, loss, 90 + 20 * done, 60 + 9 * done]
                terms = [loss, invariance, redundancy, floor]
                writer.writerow([step, step / steps_per_epoch, *terms, lr, 0.1 * lr, *norms])

    def telemetry(self, steps_per_epoch: int) -> None:
        """Write a rank that rises and one that falls, and the speed, over the epochs."""
        epochs = np.arange(1, self.params["pretrain"]["epochs"] + 1)
        terms = [f"{e * steps_per_epoch},{300 / e},{200 / e},{100 / e}" for e in epochs]
        ranks = [f"{40 + e},{90 / e},{max(0, 9 - e)},0" for e in epochs]
        rows = [",".join(map(str, row)) for row in zip(epochs, terms, ranks, strict=True)]
        text = "\n".join(
            ["epoch,step,loss,invariance,redundancy,rank_y,rank_z,dead_y,dead_z", *rows]
        )
        self._pretrain("epochs.csv").write_text(text + "\n")
        rows = [f"{float(e * steps_per_epoch)},{400 - 50 / e},{0.2 / e}" for e in epochs]
        text = "\n".join(["step,samples_per_s,wait_share", *rows])
        (self.root / "reports" / "throughput.csv").write_text(text + "\n")

    def probe(self, task: str, scores: dict[int, float]) -> Path:
        """Write the curve of a task: the linear classifier's scores by epoch."""
        path = self.root / "reports" / "probe" / f"{task}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{epoch},{0.9 * score},{score}" for epoch, score in scores.items()]
        path.write_text("\n".join(["epoch,knn,linear", *rows]) + "\n")
        return path

    def correlation(self, dims: int) -> None:
        """Write two matrices: diagonal 0.1 and 0.9 among noise."""
        noise = self.random.standard_normal((2, dims, dims)) * 0.15
        for matrix, diagonal in zip(noise, (0.1, 0.9), strict=True):
            np.fill_diagonal(matrix, diagonal)
        before, after = noise.astype(np.float32)
        matrices = {"before": before, "after": after}
        save_file(matrices, self._pretrain("correlation.safetensors"))

    def views(self, clips: int) -> None:
        """Write smooth pictures of the clips in the ledger's first rows."""
        mels, frames = self.params["logmel"]["n_mels"], self.params["pretrain"]["crop_frames"]
        f, t = np.mgrid[0 : 1 : mels * 1j, 0 : 1 : frames * 1j]
        crop = np.stack([1.5 * np.sin(9 * f + (3 + i) * 5 * t) - f for i in range(clips)])
        views = [0.8 * np.roll(crop, shift, axis=(1, 2)) + 0.3 for shift in (5, -9)]
        arrays = dict(zip(("crop", "view_1", "view_2"), (crop, *views), strict=True))
        arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
        ids = "\n".join(ledger_row(row)["clip_id"] for row in range(clips))
        save_file(arrays, self._pretrain("views.safetensors"), {"clip_id": ids})

    def _pretrain(self, name: str) -> Path:
        folder = self.root / "data" / "pretrained"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def ledger_row(row: int, **changes: Any) -> dict[str, Any]:
    """Return one row of a ledger: a clip of 9 s out of a segment of 10 s."""
    recording_id = f"toy{row:08d}"
    content = {
        "row": row,
        "clip_id": f"{recording_id}_30000",
        "recording_id": recording_id,
        "start_s": 30.0,
        "end_s": 40.0,
        "labels": "/m/09x0r,/m/04rlf" if row % 4 == 0 else "/m/09x0r",
        "status": "ok",
        "stage": "",
        "reason": "",
        "bytes": 1000,
        "sha256": "0" * 64,
        "duration_s": 9.0,
        "peak_db": -6.02,
        "clipped": 0.0,
        "frames": 901,
    }
    return content | changes


def failed_row(row: int, stage: str, status: str, reason: str) -> dict[str, Any]:
    """Return the row of a segment that failed."""
    nothing: dict[str, Any] = {"bytes": "", "sha256": "", "duration_s": "", "frames": ""}
    nothing |= {"peak_db": "", "clipped": ""}
    return ledger_row(row, stage=stage, status=status, reason=reason, **nothing)


def noise_floor(params: dict[str, Any]) -> float:
    """Return lambda D (D - 1) / B."""
    dims, batch = params["projector"]["out_dim"], params["pretrain"]["batch_size"]
    return float(params["loss"]["lambda"] * dims * (dims - 1) / batch)
