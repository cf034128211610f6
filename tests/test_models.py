"""The baselines of the evaluation: what they compute, their descriptions, what they refuse."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import soundfile
import torch
import torchaudio
from synthetic_hear import CONFIG, RATE, write_event_task, write_scene_task
from torch import nn

from pipeline.core.params import check
from pipeline.features.front_end import LogMel
from pipeline.hear.api.statistics import task_statistics
from pipeline.hear.embed.embed import write_embeddings
from pipeline.hear.models import baselines, registry
from pipeline.hear.params import BASELINES, BaselineParams, ExtractionParams
from pipeline.hear.tasks.task import read_task

TINY = {  # a wav2vec 2.0 with two convolutions and one transformer layer
    "extractor_mode": "group_norm",
    "extractor_conv_layer_config": [(8, 10, 5), (8, 8, 4)],
    "extractor_conv_bias": False,
    "encoder_embed_dim": 12,
    "encoder_projection_dropout": 0.1,
    "encoder_pos_conv_kernel": 8,
    "encoder_pos_conv_groups": 4,
    "encoder_num_layers": 1,
    "encoder_num_heads": 2,
    "encoder_attention_dropout": 0.1,
    "encoder_ff_interm_features": 16,
    "encoder_ff_interm_dropout": 0.1,
    "encoder_dropout": 0.1,
    "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.05,
    "aux_num_out": None,
}


def extraction(**changes) -> ExtractionParams:
    keys = ExtractionParams.model_fields
    settings = {key: value for key, value in CONFIG.hear.model_dump().items() if key in keys}
    return check(settings | changes, ExtractionParams)


def chosen(*names, **changes) -> BaselineParams:
    settings = CONFIG.hear.model_dump(include=set(BaselineParams.model_fields), by_alias=True)
    for key, value in changes.items():
        settings[key] = settings[key] | value
    return check(settings | {"models": list(names)}, BaselineParams)


def described(folder, name, **changes):
    """Write the description of a chosen baseline into a folder."""
    content = baselines.describe(name, chosen(name, **changes), CONFIG.logmel)
    baselines.write(content, folder)
    return folder


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def check_the_api(module, clips=2, seconds=0.5):
    """Check sizes, types and repeatability, and that a clip's embedding depends on it alone."""
    audio = noise(clips, round(seconds * module.sample_rate))
    scenes, _ = module(audio, "scene")
    events, times = module(audio, "event")
    assert scenes.shape == (clips, module.model.scene_embedding_size)
    assert events.shape == (*times.shape, module.model.timestamp_embedding_size)
    assert scenes.dtype == events.dtype == torch.float32
    assert (times[:, 1:] > times[:, :-1]).all()
    assert times.max() <= 1000 * seconds
    torch.testing.assert_close(module(audio[:1], "scene")[0], scenes[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(audio[:1], "event")[0], events[:1], rtol=1e-4, atol=1e-5)
    return audio, scenes, events, times


# ---- mel statistics -----------------------------------------------------------------------------


def test_mel_is_the_mean_and_the_standard_deviation_of_every_mel_bin(tmp_path):
    module = registry.load_hear_module("mel", described(tmp_path, "mel"), extraction(hop_ms=50.0))
    audio, scenes, events, times = check_the_api(module)
    log_mel = LogMel(CONFIG.logmel)(audio)
    expected = torch.cat([log_mel.mean(-1), log_mel.std(-1, correction=0)], dim=-1)
    torch.testing.assert_close(scenes, expected)
    padded = LogMel(CONFIG.logmel)(torch.nn.functional.pad(audio, (7600, 7600)))
    window = padded[..., 20:116]
    expected = torch.cat([window.mean(-1), window.std(-1, correction=0)], dim=-1)
    torch.testing.assert_close(events[:, 4], expected, rtol=1e-4, atol=1e-5)
    assert times[0].tolist() == [50.0 * i for i in range(11)]


def test_mel_takes_several_windows_and_edges(tmp_path):
    params = extraction(window_ms=[160.0, 950.0], edges="cut")
    module = registry.load_hear_module("mel", described(tmp_path, "mel"), params)
    _, _, events, _ = check_the_api(module)
    assert events.shape[-1] == 256


# ---- CREPE --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchcrepe():
    return pytest.importorskip("torchcrepe")


def test_crepe_equals_its_package(tmp_path, torchcrepe):
    folder = described(tmp_path, "crepe", crepe={"size": "tiny", "scene_hop_ms": 250.0})
    module = registry.load_hear_module("crepe", folder, extraction(hop_ms=50.0))
    audio, scenes, events, times = check_the_api(module, seconds=0.6)
    assert times[0].tolist() == [50.0 * i for i in range(13)]
    for clip, embedding, scene in zip(audio, events, scenes, strict=True):
        expected = torchcrepe.embed(clip[None], RATE, 800, "tiny", device="cpu")  # [1, T, 32, 8]
        torch.testing.assert_close(embedding, expected[0].flatten(1), rtol=1e-3, atol=1e-4)
        expected = torchcrepe.embed(clip[None], RATE, 4000, "tiny", device="cpu")
        torch.testing.assert_close(scene, expected[0].flatten(1).mean(0), rtol=1e-3, atol=1e-4)


def test_crepe_stays_finite_in_silence(tmp_path, torchcrepe):
    folder = described(tmp_path, "crepe", crepe={"size": "tiny"})
    module = registry.load_hear_module("crepe", folder, extraction())
    assert module(torch.zeros(1, 100), "scene")[0].isfinite().all()


def test_a_missing_package_is_named_with_its_command_only_if_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcrepe", None)
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    baselines.require_installed(chosen("pretrained", "mel"))
    with pytest.raises(RuntimeError, match=r"torchcrepe is not installed.*pip install torchcrepe"):
        baselines.require_installed(chosen("pretrained", "crepe"))


# ---- wav2vec 2.0 --------------------------------------------------------------------------------


@pytest.fixture
def tiny_bundle(tmp_path, monkeypatch):
    """A small torchaudio bundle with random weights on disk."""
    torch.manual_seed(0)
    network = torchaudio.models.wav2vec2_model(**TINY).eval()
    path = tmp_path / "tiny.pth"
    torch.save(network.state_dict(), path)
    bundle = SimpleNamespace(_params=TINY, _normalize_waveform=True, sample_rate=RATE)
    monkeypatch.setattr(torchaudio.pipelines, "WAV2VEC2_TINY", bundle, raising=False)
    return network, {"bundle": "WAV2VEC2_TINY", "weights": str(path)}


def test_wav2vec2_gives_the_last_layer_at_every_hop_of_its_convolutions(tmp_path, tiny_bundle):
    network, settings = tiny_bundle
    module = registry.load_hear_module(
        "wav2vec2", described(tmp_path, "wav2vec2", wav2vec2=settings), extraction()
    )
    audio, scenes, events, times = check_the_api(module)
    for clip, embedding, scene in zip(audio, events, scenes, strict=True):
        normalized = (clip - clip.mean()) / clip.std(correction=0)
        with torch.no_grad():
            expected = network(normalized[None])[0][0]
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scene, expected.mean(dim=0), rtol=1e-4, atol=1e-4)
    assert (module.model.hop, module.model.reach) == (20, 45)  # samples, of both convolutions
    assert times[0, :2].tolist() == pytest.approx([22.5 / 16, 42.5 / 16])


def test_the_centers_of_the_published_bundles_start_at_12_5_ms():
    params = torchaudio.pipelines.WAV2VEC2_BASE._params
    config = [(4, kernel, stride) for _, kernel, stride in params["extractor_conv_layer_config"]]
    small = {"extractor_conv_layer_config": config}
    model = registry.wav2vec2.Wav2Vec2(
        torchaudio.models.wav2vec2_model(**TINY | small), 12, RATE, normalized=False
    )
    assert (model.hop, model.reach) == (320, 400)


def test_weights_of_another_bundle_are_refused(tmp_path, tiny_bundle):
    _, settings = tiny_bundle
    torch.save({"other": torch.zeros(1)}, settings["weights"])
    folder = described(tmp_path, "wav2vec2", wav2vec2=settings)
    with pytest.raises(ValueError, match=r"tiny\.pth does not hold the weights of WAV2VEC2_TINY"):
        registry.load_hear_module("wav2vec2", folder, extraction())


def test_the_message_for_an_unknown_bundle_lists_the_available_ones(tmp_path, tiny_bundle):
    _, settings = tiny_bundle
    folder = described(tmp_path, "wav2vec2", wav2vec2=settings | {"bundle": "WAV2VEC2_X"})
    with pytest.raises(ValueError, match=r"bundle = 'WAV2VEC2_X': torchaudio.* WAV2VEC2_BASE"):
        registry.load_hear_module("wav2vec2", folder, extraction())


def test_the_message_for_missing_weights_says_where_to_get_them():
    message = r"hear\.wav2vec2\.weights = '' is not a file.*download\.pytorch\.org.*WAV2VEC2_LARGE"
    with pytest.raises(FileNotFoundError, match=message):
        baselines.require_installed(chosen("wav2vec2"))


# ---- any HEAR module ----------------------------------------------------------------------------


class ToyModel(nn.Module):
    """Like hearbaseline's simplest model: a random projection of frames."""

    sample_rate = RATE
    scene_embedding_size = timestamp_embedding_size = 5

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.loaded = weights
        self.register_buffer("projection", noise(800, 5))
        self.dropout = nn.Dropout(0.5)


def toy_timestamps(audio, model):
    frames = torch.nn.functional.pad(audio, (0, 800)).unfold(-1, 800, 800)
    embeddings = model.dropout(frames @ model.projection)
    times = 25.0 + 50.0 * torch.arange(embeddings.shape[1])
    return embeddings, times.repeat(len(audio), 1)


@pytest.fixture
def toy(monkeypatch):
    """An importable module with the HEAR API."""
    module = ModuleType("toybaseline")
    module.load_model = lambda model_file_path="": ToyModel(model_file_path)
    module.get_scene_embeddings = lambda a, m: toy_timestamps(a, m)[0].mean(dim=1)
    module.get_timestamp_embeddings = toy_timestamps
    module.__spec__ = SimpleNamespace(parent="")
    monkeypatch.setitem(sys.modules, "toybaseline", module)
    return module


@pytest.mark.parametrize("write", [write_scene_task, write_event_task])
def test_any_module_embeds_tasks_in_evaluation_mode(tmp_path, toy, write):
    weights = tmp_path / "toy.pt"
    weights.write_bytes(b"toy")
    settings = {"import": "toybaseline", "weights": str(weights)}
    (tmp_path / "out").mkdir()
    module = registry.load_hear_module(
        "module", described(tmp_path, "module", module=settings), extraction()
    )
    assert module.model.loaded == str(weights)
    write_embeddings(read_task(write(tmp_path / "task")), module, tmp_path / "out")
    assert json.loads((tmp_path / "out/test.embedding-dimensions.json").read_text())[1] == 5


def test_the_description_depends_on_the_content_of_the_weights(tmp_path, toy):
    weights = tmp_path / "toy.pt"
    settings = {"import": "toybaseline", "weights": str(weights)}
    contents = []
    for content in (b"one", b"two", b"two"):
        weights.write_bytes(content)
        contents.append(
            (described(tmp_path, "module", module=settings) / "model.json").read_bytes()
        )
    assert contents[0] != contents[1] == contents[2]


def test_a_module_without_the_hear_api_is_refused(tmp_path, toy):
    folder = described(tmp_path, "module", module={"import": "toybaseline", "weights": ""})
    toy.load_model = lambda: "model"
    with pytest.raises(ValueError, match=r"toybaseline\.load_model returned a str, expected"):
        registry.load_hear_module("module", folder, extraction())
    del toy.get_scene_embeddings
    with pytest.raises(ValueError, match="'toybaseline' has no get_scene_embeddings"):
        registry.load_hear_module("module", folder, extraction())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"import": ""}, ValueError, r"hear\.module\.import is empty"),
        ({"import": "no_such.module"}, RuntimeError, "the module does not exist.*pip install"),
        ({"import": "json", "weights": "nowhere"}, FileNotFoundError, "'nowhere' does not exist"),
    ],
)
def test_an_unusable_module_is_refused_before_any_work(settings, error, message):
    with pytest.raises(error, match=message):
        baselines.require_installed(chosen("module", module=settings))


HEAR_MODULE = """
def load_model(path=""):
    {load}

def get_scene_embeddings(audio, model):
    {embed}

def get_timestamp_embeddings(audio, model):
    {embed}
"""


@pytest.fixture
def written_module(tmp_path, monkeypatch):
    """Return a function that makes an importable module from code and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(code):
        (tmp_path / "toymodule").mkdir()
        (tmp_path / "toymodule/__init__.py").write_text(code)
        return "toymodule"

    yield write
    sys.modules.pop("toymodule", None)


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("", ValueError, "has no load_model, get_scene_embeddings, get_timestamp_embeddings, so"),
        ("import no_such_lib", RuntimeError, "needs the module 'no_such_lib', which is not inst"),
        ("import toymodule.sub", RuntimeError, "needs the module 'toymodule.sub'"),
        ("raise ImportError('no GPU')", RuntimeError, "cannot be imported: ImportError: no GPU"),
        ("raise ValueError('boom')", RuntimeError, "cannot be imported: ValueError: boom"),
        ("def f(:", RuntimeError, r"cannot be imported: SyntaxError: .*__init__\.py, line 1"),
    ],
)
def test_a_module_that_fails_on_import_is_refused_before_any_work(
    written_module, code, error, message
):
    params = chosen("module", module={"import": written_module(code)})
    with pytest.raises(error, match=rf"hear\.module\.import = 'toymodule' {message}"):
        baselines.require_installed(params)


@pytest.mark.parametrize("code", ["raise TypeError('boom')", "assert False, 'boom'", "no_name"])
def test_errors_of_a_module_name_its_function(tmp_path, written_module, code):
    cause = r"failed: (TypeError: boom|AssertionError: boom|NameError: name 'no_name' is)"
    name = written_module(HEAR_MODULE.format(load=code, embed=code))
    folder = described(tmp_path, "module", module={"import": name})
    with pytest.raises(RuntimeError, match=rf"^toymodule\.load_model {cause}"):
        registry.load_hear_module("module", folder, extraction())
    sys.modules[name].load_model = lambda: ToyModel("")
    module = registry.load_hear_module("module", folder, extraction())
    with pytest.raises(RuntimeError, match=rf"^toymodule\.get_scene_embeddings {cause}"):
        module(noise(1, RATE), "scene")
    with pytest.raises(RuntimeError, match=rf"^toymodule\.get_timestamp_embeddings {cause}"):
        module(noise(1, RATE), "event")


# ---- descriptions -------------------------------------------------------------------------------


def test_the_description_of_an_unused_model_is_its_name():
    params = chosen("pretrained")
    for name in BASELINES:
        assert baselines.describe(name, params, CONFIG.logmel) == {"model": name}


def test_the_description_has_the_versions_of_packages(tmp_path, torchcrepe):
    content = baselines.describe("crepe", chosen("crepe"), CONFIG.logmel)
    assert set(content["packages"]) == {"torchcrepe"}


def test_the_checksum_of_a_folder_covers_content_and_names(tmp_path):
    (tmp_path / "a").write_text("1")
    before = baselines.checksum(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert baselines.checksum(tmp_path) != before


def test_a_missing_or_broken_description_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.json does not exist.*dvc repro baselines"):
        baselines.read(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json is broken"):
        baselines.read(tmp_path)


# ---- statistics of a task -----------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_statistics_of_a_task_are_those_of_its_training_clips(tmp_path, workers):
    task = read_task(write_scene_task(tmp_path / "task"))
    files = [task.audio(RATE, "train") / name for name in task.labels["train"]]
    waves = torch.stack(
        [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in files]
    )
    log_mel = LogMel(CONFIG.logmel)(waves).double()
    mean, std = task_statistics(task, CONFIG.logmel, workers)
    assert mean == pytest.approx(float(log_mel.mean()), rel=1e-6)
    assert std == pytest.approx(float(log_mel.std(correction=0)), rel=1e-6)
