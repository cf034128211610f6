"""The option files of the paper's runs, applied to params.yaml, against the paper's table."""

import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML
from zenodo_server import TASKS

from pipeline.config import load_config
from pipeline.core.params import PARAMS_FILE
from pipeline.report.paper import settings
from pipeline.report.paper.settings import differing, paper_settings, read_preset
from pipeline.report.results import flatten

PRESETS = Path(__file__).parents[1] / "presets"

COMMON = {  # paper sections 3.1 and A.1, report p. 33
    "logmel.sample_rate": 16_000,
    "logmel.n_mels": 64,
    "logmel.win_length": 1024,
    "logmel.hop_length": 160,
    "augment.pre_post_norm": False,
    "augment.mixup_alpha": 0.2,
    "augment.mixup_bank": 2048,
    "augment.mixup_background": "bank",
    "augment.noise": "none",
    "augment.rrc_canvas_mels": 1.0,
    "augment.rrc_canvas_frames": 1.5,
    "augment.rrc_mel_scale": [0.6, 1.5],
    "augment.rrc_frame_scale": [0.6, 1.5],
    "augment.rlf_gain": 1.0,
    "projector.hidden_layers": 1,
    "projector.hidden_dim": 8192,
    "loss.alpha": 1.0,
    "loss.lambda_": 0.005,
    "loss.hsic": False,
    "loss.target": "shared",
    "loss.predictor": False,
    "pretrain.epochs": 100,
    "pretrain.batch_size": 128,
    "pretrain.crops_per_clip": 1,
    "pretrain.crop_frames": 96,
    "pretrain.snapshot_epochs": 5,
    "hear.window_ms": [950.0],
    "hear.hop_ms": 50.0,
    "score.grid": "default",
    "score.grid_points": 8,
}
DATA = {
    "audioset": {
        "projector.out_dim": 1048,
        "pretrain.schedule": "cosine",
        "pretrain.warmup_epochs": 1.0,
        "pretrain.cosine_horizon": 1.0,
        "pretrain.log_every": 100,
    },
    "fsd50k": {
        "projector.out_dim": 256,
        "pretrain.schedule": "constant",
        "pretrain.warmup_epochs": 0.0,
        "pretrain.log_every": 10,
    },
}
AUDIONTT = {
    "embed_dim": 3072,
    "dropout": 0.3,
    "optimizer.name": "lars",
    "optimizer.lr": 0.4,
    "optimizer.lr_biases": 0.0048,
    "optimizer.weight_decay": 1e-5,
    "optimizer.momentum": 0.9,
    "optimizer.trust_coefficient": 0.001,
}
VITC = {
    "size": "base",
    "patch_mels": 16,
    "patch_frames": 8,
    "position": "sincos",
    "pool": "cls",
    "mask_ratio": 0.0,
    "optimizer.name": "adamw",
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
}
ENCODER = {
    "audioset-audiontt": AUDIONTT,
    "fsd50k-audiontt": AUDIONTT,
    "audioset-vitc": {**VITC, "optimizer.lr": 6.25e-5, "optimizer.weight_decay": 0.24},
    "fsd50k-vitc": {**VITC, "optimizer.lr": 1e-4, "optimizer.weight_decay": 0.06},
}


AS_PUBLISHED = ("logmel.", "augment.", "projector.", "loss.", "pretrain.")
WITHOUT_EFFECT = {  # on the weights of the paper's runs
    "augment.noise_max",
    "loss.ema_decay",
    "pretrain.seed",
    "pretrain.log_every",
    "pretrain.rank_clips",
    "pretrain.snapshot_epochs",
    "pretrain.random_calibration_clips",
}
UNUSED = {
    "audiontt": {"optimizer.beta1", "optimizer.beta2"},
    "vitc": {
        "mask_schedule",
        "mask_warmup",
        "optimizer.lr_biases",
        "optimizer.momentum",
        "optimizer.trust_coefficient",
    },
}
MIRRORS = {"audioset-parquet": "parquet", "audioset-16khz": "tar"}  # option file -> source
GROUPS = {"hear": 18, "hear-l": 5}  # option file -> number of tasks


def options(name):
    """The options of a file as the shell splits `$(cat presets/<name>)`: key -> text.

    The shell reads brackets as a pattern; no file in the repository's root may match it.
    """
    command = ["sh", "-c", f"printf '%s\\n' $(cat presets/{name})"]
    words = subprocess.check_output(command, cwd=PRESETS.parent, text=True).splitlines()
    assert set(words[::2]) == {"-S"}
    return dict(word.split("=") for word in words[1::2])


def changed(folder, *names):
    """The default parameters with the options of some files."""
    path = folder / "params.yaml"
    shutil.copy(PARAMS_FILE, path)
    for name in names:
        apply_overrides(path, [f"{key}={text}" for key, text in options(name).items()])
    return load_config(path)


def test_every_file_is_tested():
    assert {path.name for path in PRESETS.iterdir()} == {*ENCODER, *GROUPS, *MIRRORS, "byol"}


@pytest.mark.parametrize("name", MIRRORS)
def test_a_mirror_can_be_the_data_of_a_run_of_the_paper(name, tmp_path):
    config = changed(tmp_path, "audioset-audiontt", name)
    source = getattr(config.sources, MIRRORS[name])
    (audioset,) = config.sources.audioset.subsets
    assert source.segments == [config.sources.audioset.lists.replace("{subset}", audioset)]
    assert (config.pretrain.epochs, config.download.clips_per_shard) == (100, 4096)


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_of_tasks_is_fetched_and_scored_by_the_protocol(name, tmp_path):
    config = changed(tmp_path, name)
    assert config.hear.source == "zenodo" and config.hear.folder is None
    assert len(config.hear.tasks) == GROUPS[name] and set(config.hear.tasks) <= set(TASKS)
    assert config.hear.hop_ms == 50.0
    assert (config.score.grid, config.score.grid_points) == ("default", 8)


def test_the_large_group_has_the_five_tasks_that_the_published_averages_have(tmp_path):
    tasks = changed(tmp_path, "hear-l").hear.tasks
    assert [task.split("-")[0] for task in tasks] == [
        "tfds_crema_d",
        "speech_commands",
        "fsd50k",
        "esc50",
        "tfds_gtzan",
    ]
    assert tasks[1].endswith("-5h")


def test_a_group_of_tasks_can_be_added_to_a_run_of_the_paper(tmp_path):
    config = changed(tmp_path, "audioset-audiontt", "hear")
    assert config.pretrain.epochs == 100 and len(config.hear.tasks) == 18


@pytest.mark.parametrize("name", ENCODER)
def test_a_preset_makes_the_default_parameters_those_of_the_paper(name, tmp_path):
    config = changed(tmp_path, name)
    data, encoder = name.split("-")
    assert config.encoder == encoder
    section = f"encoders.{encoder}."
    expected = {section + key: value for key, value in ENCODER[name].items()}
    for key, value in {**COMMON, **DATA[data], **expected}.items():
        actual = config
        for part in key.split("."):
            actual = getattr(actual, part)
        assert (key, actual) == (key, value)
    assert config.augment.mixup and config.augment.rrc and config.augment.rlf


REFERENCE = {"hear.mode", "hear.normalization", "hear.edges"}  # the authors' wrapper


@pytest.mark.parametrize("encoder", ["audiontt", "vitc"])
def test_the_report_takes_from_a_preset_what_it_sets_and_lists_the_rest_once(encoder):
    preset = read_preset(PRESETS / f"audioset-{encoder}")
    ignored = {"encoder", "pretrain.log_every", "pretrain.snapshot_epochs"}
    ignored |= {"score.grid", "score.grid_points"}  # compared apart
    assert options(f"audioset-{encoder}").keys() == preset.keys() | ignored
    own = {f"encoders.{encoder}.{key}" for key in settings.ENCODER_DEFAULTS[encoder]}
    listed = settings.DEFAULTS.keys() | own
    assert not listed & preset.keys()
    assert paper_settings(encoder).keys() == listed | preset.keys()


def test_the_report_depends_on_the_presets_that_it_reads():
    stages = YAML(typ="safe").load(PRESETS.parent / "dvc.yaml")["stages"]
    needed = {f"presets/audioset-{encoder}" for encoder in settings.ENCODER_DEFAULTS}
    assert needed == {dep for dep in stages["report"]["deps"] if dep.startswith("presets")}


@pytest.mark.parametrize("encoder", ["audiontt", "vitc"])
def test_the_report_finds_every_setting_that_differs_from_the_paper_s(encoder, tmp_path):
    changed(tmp_path, f"audioset-{encoder}")
    path = tmp_path / "params.yaml"
    flat = flatten(YAML(typ="safe").load(path))
    assert {key for key, *_ in differing(flat)} == REFERENCE
    own = f"encoders.{encoder}."
    keys = {key for key in flat if key.startswith((*AS_PUBLISHED, own))}
    for key in keys - WITHOUT_EFFECT - {own + key for key in UNUSED[encoder]}:
        assert key in {name for name, *_ in differing(flat | {key: "other"})}


@pytest.mark.parametrize("name", [*ENCODER, *GROUPS, *MIRRORS])
def test_an_option_is_not_the_source_and_reads_as_yaml_as_the_paper_writes_it(name):
    yaml = YAML(typ="safe", pure=True)
    config = load_config()
    for key, text in options(name).items():
        assert key != "source"
        default = config
        for part in key.split("."):
            default = getattr(default, part)
        if default is not None:  # probe.tasks: auto
            assert type(yaml.load(text)) is type(default), key


@pytest.mark.parametrize("encoder", ["audiontt", "vitc"])
def test_byol_follows_any_preset_and_changes_the_objective_alone(encoder, tmp_path):
    (tmp_path / "without").mkdir()
    plain = changed(tmp_path / "without", f"audioset-{encoder}")
    config = changed(tmp_path, f"audioset-{encoder}", "byol")
    objective = {"objective": "byol", "target": "ema", "predictor": True}
    loss = plain.loss.model_copy(update=objective)
    assert config == plain.model_copy(update={"loss": loss})
