"""The check-up of a machine: what it counts, forecasts and complains about."""

import json
import os
import resource
import socket
from datetime import date
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import synthetic_sources
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline.commands.doctor import __main__ as doctor
from pipeline.commands.doctor import calibration, examination, forecast, source_size
from pipeline.commands.doctor.cache import Sharing, sharing
from pipeline.config import load_config
from pipeline.corpus.clips import segments
from pipeline.corpus.fetch import requirements

ROOT = Path(__file__).parents[1]
HEAD = "# Segments csv\n# YTID, start_seconds, end_seconds, positive_labels\n"
ONCE = Sharing(Path("cache"), ["hardlink"], ["hardlink"], "")
TWICE = Sharing(Path("cache"), ["reflink", "hardlink"], ["hardlink"], "")


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """A folder with the committed parameters and a list of two clips."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    Path("list.csv").write_text(HEAD + 'a, 0.000, 10.000, ""\nb, 0.000, 5.000, ""\n')
    settings({})


def settings(changes):
    """Write the committed params.yaml with some dotted keys changed; return it checked."""
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")
    base = {
        "source": "url",
        "sources.url.segments": "list.csv",
        "sources.url.url": "{recording_id}.ogg",
    }
    for key, value in {**base, **changes}.items():
        *parents, last = key.split(".")
        section = values
        for part in parents:
            section = section[part]
        section[last] = value
    yaml.dump(values, Path("params.yaml"))
    return load_config()


def found_by(subject, findings):
    return [finding for finding in findings if finding.subject == subject]


def test_a_release_s_age_is_in_its_number():
    assert requirements.age_days("2026.10.26", date(2026, 11, 23)) == 28
    assert requirements.age_days("2026.10.26.232330", date(2026, 10, 26)) == 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://www.youtube.com/watch?v={recording_id}", True),
        ("https://youtu.be/{recording_id}", True),
        ("https://notyoutube.com/{recording_id}", False),
        ("https://example.org/youtube.com/{recording_id}", False),
        ("data/youtube.com/{recording_id}.ogg", False),
    ],
)
def test_youtube_is_known_by_its_host(url, expected):
    assert requirements.is_youtube(url) == expected


def test_a_clip_of_ten_seconds_has_the_sizes_of_its_arrays():
    log_mel = np.zeros((1 + 160_000 // 160, 64), np.float16)
    size = forecast.clip_bytes(settings({}), source_size.SourceSize(1, 10.0, 5.0, ""))
    assert size == {"as fetched": 5.0, "FLAC": pytest.approx(172_800), "log-mel": log_mel.nbytes}


def test_counting_a_list_agrees_with_reading_it():
    Path("odd.csv").write_bytes(
        b'YTID,start_seconds,end_seconds,positive_labels\r\n\r\n# x\r\n-a, 0, 10, "/m/1"\r\n'
        b'_b, 3, 7, ""\r\n'
    )
    assert source_size.count(Path("odd.csv")) == len(segments.read(Path("odd.csv"))) == 2


def test_a_segment_list_gives_clips_and_their_mean_duration():
    size = source_size.source_size(settings({}))
    assert (size.clips, size.duration_s) == (2, 7.5)
    Path("selected").write_text("a\n")
    assert source_size.source_size(settings({"sources.url.clips": "selected"})).clips == 1


def test_a_large_list_is_not_read(monkeypatch):
    monkeypatch.setattr(source_size, "SMALL_LIST", 0)
    monkeypatch.setattr(segments, "read", lambda _: pytest.fail("it was read"))
    assert source_size.source_size(settings({})).clips == 2


def test_the_size_of_audioset_is_known_without_its_lists():
    config = settings(
        {"source": "audioset", "sources.audioset.subsets": ["eval", "balanced_train"]}
    )
    assert source_size.source_size(config).clips == 20_371 + 22_160
    assert source_size.source_size(settings({"source": "audioset"})).clips == 2_041_789
    here = {"source": "audioset", "sources.audioset.lists": "list.csv"}
    assert source_size.source_size(settings(here)).clips == 2


def test_a_folder_is_counted_unless_it_is_large(monkeypatch):
    Path("audio").mkdir()
    for name, seconds in (("a", 2), ("b", 6)):
        soundfile.write(f"audio/{name}.wav", np.zeros(8000 * seconds), 8000)
    config = settings({"source": "folder", "sources.folder.path": "audio",
                       "sources.folder.max_clip_s": 4.0})  # fmt: skip
    size = source_size.source_size(config)
    total = sum(path.stat().st_size for path in Path("audio").iterdir())
    assert (size.clips, size.fetched_bytes) == (3, total / 3)
    monkeypatch.setattr(source_size, "SMALL_CORPUS", 0)
    assert source_size.source_size(config) is None
    (line,) = forecast.findings(config, ONCE, "")
    assert (line.level, line.subject) == ("warning", "source")


def test_a_source_that_is_not_here_is_a_problem():
    (line,) = forecast.findings(settings({"sources.url.segments": "x.csv"}), ONCE, "")
    assert (line.level, line.text[:29]) == ("problem", "There is no segment list x.csv"[:29])


@pytest.mark.parametrize(
    ("shared", "free", "level"),
    [(ONCE, 1_010_000, "ok"), (ONCE, 990_000, "problem"), (TWICE, 1_990_000, "problem"),
     (TWICE, 2_010_000, "ok")],
)  # fmt: skip
def test_the_disk_must_hold_all_data_twice_if_dvc_copies_them(monkeypatch, shared, free, level):
    config = settings({})
    sizes = forecast.clip_bytes(config, source_size.SourceSize(1, 10.0, 0.0, ""))
    fetched = 1_000_000 / 2 - sum(sizes.values())
    monkeypatch.setattr(forecast.files, "free_bytes", lambda _: free)
    lines = list(forecast.disk(config, source_size.SourceSize(2, 10.0, fetched, ""), shared))
    assert [line.level for line in found_by("disk", lines)] == [level]


def test_data_on_disk_need_no_more_space(monkeypatch):
    for folder in ("data/clips", ".work/clips/x/packs"):
        Path(folder).mkdir(parents=True)
    Path("data/clips/0.tar").write_bytes(bytes(400_000))
    os.link("data/clips/0.tar", ".work/clips/x/packs/0.tar")
    monkeypatch.setattr(forecast.files, "free_bytes", lambda _: 10_000)
    config = settings({})
    sizes = forecast.clip_bytes(config, source_size.SourceSize(1, 10.0, 0.0, ""))
    size = source_size.SourceSize(1, 10.0, 405_000 - sum(sizes.values()), "")
    assert [f.level for f in found_by("disk", forecast.disk(config, size, ONCE))] == ["ok"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DVC's and its libraries'
@pytest.mark.parametrize("types", ["reflink,hardlink,symlink", "hardlink,symlink", "copy"])
def test_data_are_stored_twice_exactly_if_dvc_does_so(types):
    """Compared with what DVC does with a file, not with what it says it can do."""
    with Repo.init(no_scm=True) as repo, repo.config.edit() as config:
        config["cache"]["type"] = types.split(",")
        config["core"]["analytics"] = False
    shared = sharing()
    if "reflink" in shared.usable:
        pytest.skip("a reflink cannot be distinguished from a copy")
    Path("data").mkdir()
    Path("data/x").write_bytes(bytes(1000))
    with Repo() as repo:
        repo.add("data")  # a folder, as a stage puts out
        cached = [p for p in Path(repo.cache.local.path).rglob("*") if p.is_file()]
    assert shared.is_copied == (os.stat("data/x").st_ino not in {os.stat(p).st_ino for p in cached})
    level = "warning" if shared.is_copied else "ok"
    assert [line.level for line in found_by("dvc cache", shared.findings())] == [level]


def test_times_are_cpu_time_by_clips_by_cores(monkeypatch):
    measured = {"download": 0.1, "resample": 0.02, "logmel": 0.01}
    monkeypatch.setattr(calibration, "measure", lambda _: measured)
    monkeypatch.setattr(forecast, "cores", lambda: 4)
    config = settings({"compute.workers": 2})
    lines = list(forecast.data_stages(config, source_size.SourceSize(1_000_000, 5.0, 1.0, "")))
    assert [(line.subject, line.text) for line in lines] == [
        ("download", "6.9 h: 50.0 ms of CPU per clip"),
        ("resample", "83.3 min: 10.0 ms of CPU per clip"),
        ("logmel", "41.7 min: 5.0 ms of CPU per clip"),
    ]


def test_the_rate_for_a_web_site_decides_how_long_a_download_takes():
    size = source_size.SourceSize(2_041_789, 10.0, 1.0, "")
    config = settings({"source": "audioset", "network.clips_per_hour": 300.0})
    assert forecast.downloading(config, size, "").text.startswith("283.6 days at 300 clips an hour")
    config = settings({"source": "audioset", "network.to_hour": 12.0})
    assert forecast.downloading(config, size, "").text.startswith("680.6 days at 250 clips an hour")


@pytest.mark.parametrize(
    ("changes", "clips", "level", "remedy"),
    [
        ({"source": "audioset"}, 2_041_789, "warning", "mirrors of AudioSet"),
        ({"source": "audioset"}, 22_160, "ok", ""),
        ({"sources.url.url": "https://x.org/{recording_id}"}, 2_041_789, "warning", "fewer clips"),
        ({"network.clips_per_hour": 0.0, "source": "audioset"}, 2_041_789, "ok", ""),
        ({"sources.url.url": "{recording_id}.ogg"}, 2_041_789, "ok", ""),
    ],
)
def test_a_download_of_many_days_is_a_warning_with_a_remedy(changes, clips, level, remedy):
    size = source_size.SourceSize(clips, 10.0, 1.0, "")
    found = forecast.downloading(settings(changes), size, "")
    assert found.level == level
    assert remedy in found.text


@pytest.mark.parametrize(("limit", "level"), [(40, "warning"), (1024, "ok"), (-1, "ok")])
def test_a_low_limit_on_open_files_is_a_warning(monkeypatch, limit, level):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert examination.open_files().level == level


def test_a_mirror_is_counted_without_a_list_that_is_not_here(monkeypatch):
    synthetic_sources.tar_mirror("mirror")
    changes = {"source": "tar", "sources.tar.path": "mirror", "sources.tar.id_key": "id"}
    web = {"sources.tar.segments": ["http://127.0.0.1:1/list.csv"]}
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was used"))
    assert source_size.source_size(settings(changes | web)).clips == 3
    synthetic_sources.audioset_list(Path("list.csv"))
    here = {"sources.tar.segments": ["list.csv"]}
    assert source_size.source_size(settings(changes | here)).clips == 5


def test_speeds_on_an_h100_are_those_of_the_benchmarks():
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    assert all(f"{speed:,}" in results for speed in forecast.H100.values())
    paper = {"projector.hidden_dim": 8192, "projector.out_dim": 1048, "pretrain.batch_size": 128}
    size = source_size.SourceSize(1_629_756, 10.0, 1.0, "")
    config = settings({**paper, "pretrain.epochs": 100})
    line = forecast.pretraining(config, size, "NVIDIA H100 80GB HBM3, 79 GiB")
    assert line.text.startswith("45.9 min: 59,126 samples/s")
    assert "unknown" in forecast.pretraining(config, size, "NVIDIA A10").text
    other = settings({"pretrain.batch_size": 128})
    assert "unknown" in forecast.pretraining(other, size, "NVIDIA H100").text


def test_the_speed_of_the_last_run_counts_if_its_networks_were_the_same():
    config = settings({"pretrain.epochs": 3})
    keys = ("encoder", "encoders.audiontt", "projector", "pretrain")
    values = {key: forecast.params.load_value(key) for key in keys}
    values["pretrain"]["epochs"] = 99
    Path(".work").mkdir()
    record = {"stage": "pretrain", "seconds": 1.0, "params": values}
    Path(".work/runtime.jsonl").write_text(f"\n{json.dumps(record)}")
    Path("reports").mkdir()
    Path("reports/throughput.csv").write_text(
        "step,samples_per_s,wait_share\n1,5,0\n2,10,0\n3,90,0\n"
    )
    size = source_size.SourceSize(1000, 10.0, 1.0, "")
    text = forecast.pretraining(config, size, "").text
    assert text == "5.0 min: 10 samples/s, as the last run here"
    other = settings({"projector.out_dim": 512})
    assert "unknown" in forecast.pretraining(other, size, "").text


def run(capsys):
    """Exit status and lines of the command."""
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    return ended.value.code, capsys.readouterr().out.splitlines()


def test_a_suitable_machine_has_no_problem_and_needs_no_network(capsys, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    code, lines = run(capsys)
    assert code == 0, lines
    assert lines[-1].startswith("0 problem(s)")
    subjects = {line[9:20].strip() for line in lines[:-1]}
    assert subjects >= {
        *doctor.PACKAGES, "python", "params", "ffmpeg", "gpu", "cores", "memory", "open files",
        "dvc cache", "dvc remote", "source", "disk", "download", "resample", "logmel", "pretrain",
    }  # fmt: skip
    assert "javascript" not in subjects


def test_problems_are_reported_and_give_exit_status_1(capsys, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    monkeypatch.setattr(examination, "forecast", SimpleNamespace(findings=lambda *_: []))
    settings({"network.cookies": "no.txt", "compute.device": "cuda", "compute.fast": False})
    monkeypatch.setattr(examination.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(examination.torch.cuda, "device_count", lambda: 0)
    code, lines = run(capsys)
    assert code == 1
    problems = [line for line in lines if line.startswith("problem")]
    assert len(problems) == 3
    for line, text in zip(
        problems, ("FFmpeg does not run", "no.txt", "none that torch"), strict=True
    ):
        assert text in line


def test_wrong_parameters_are_reported_by_name(capsys):
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("epochs: 8", "epochs: 0"))
    code, lines = run(capsys)
    assert code == 1
    assert "pretrain.epochs = 0" in "\n".join(lines)


def test_a_missing_package_is_reported_before_anything_is_imported(capsys, monkeypatch):
    def version(name):
        if name == "h5py":
            raise metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr(doctor.metadata, "version", version)
    code, lines = run(capsys)
    assert code == 1
    assert any(line.startswith("problem  h5py") and "make doctor" in line for line in lines)
    assert not any("params" in line for line in lines)


def test_tools_for_youtube_matter_only_for_youtube(monkeypatch):
    monkeypatch.setattr(requirements.yt_dlp.version, "__version__", "2020.01.31")
    monkeypatch.setattr(requirements, "js_runtimes", lambda: iter([("node", "20.0.0", False)]))
    config = settings({})
    for url, levels in (
        ("https://www.youtube.com/watch?v={recording_id}", ["ok", "problem", "problem"]),
        ("https://example.org/{recording_id}", ["ok", "warning"]),
    ):
        assert [line.level for line in examination.fetching(config, url)] == levels
    any_age = settings({"network.max_tool_age_days": 0})
    assert next(iter(found_by("yt-dlp", examination.fetching(any_age, "")))).level == "ok"


def test_either_deno_or_node_must_be_recent_enough(monkeypatch):
    monkeypatch.setattr(requirements, "js_runtimes", lambda: iter([("deno", "2.2.0", False),
                                                            ("node", "22.1.0", True)]))  # fmt: skip
    assert requirements.check_js_runtime() == "node 22.1.0"
    monkeypatch.setattr(requirements, "js_runtimes", lambda: iter([]))
    with pytest.raises(requirements.ToolError, match="none found"):
        requirements.check_js_runtime()
