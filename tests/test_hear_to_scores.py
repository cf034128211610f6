"""All 18 tasks, from their Zenodo record to embeddings, scores and the paper's tables."""

import json
import shutil
import signal
from functools import partial
from pathlib import Path

import diskcache
import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML
from synthetic_hear import ROOT, SMALL, write_checkpoint
from zenodo_server import TASKS, files, key, pack, serve

import stages.embed
import stages.hear_tasks
import stages.score
from pipeline.config import load_config
from pipeline.core.stage import run
from pipeline.hear.embed.cache import shares_audio
from pipeline.report import score_table
from pipeline.report.paper.columns import GROUPS
from pipeline.report.paper.comparison import compare
from pipeline.report.results import flatten

MODEL = "pretrained"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A folder with a small encoder; its tasks are in a record on the loopback interface."""
    folder = tmp_path_factory.mktemp("repository")
    handler = signal.getsignal(signal.SIGTERM)
    with (
        pytest.MonkeyPatch.context() as patch,
        serve({key(name): pack(files(name)) for name in TASKS}) as site,
    ):
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        shutil.copy(ROOT / "params.yaml", folder)
        write_checkpoint(folder / "data" / MODEL, "audiontt", **SMALL)
        changes = ["hear.source=zenodo", f"hear.sources.zenodo.listing='{site.listing}'",
                   f"hear.tasks=[{','.join(TASKS)}]", "score.engine=batched",
                   "score.grid=faster", "score.grid_points=1", "hear.window_ms=100.0",
                   "probe.tasks=[]"]  # fmt: skip
        apply_overrides(folder / "params.yaml", changes)
        yield folder
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def scored(repository):
    """Score all tasks as the stages do; return the summaries by task."""
    summaries = {}
    for name in TASKS:
        run("hear_tasks", partial(stages.hear_tasks.main, name=name), name)
        for stage, main in (("embed", stages.embed.main), ("score", stages.score.main)):
            run(stage, partial(main, name=name, model_name=MODEL), name, MODEL)
        summaries[name] = json.loads(Path(f"reports/scores/{MODEL}/{name}.json").read_text())
    return summaries


def test_every_task_ends_in_a_score_of_its_own_metric(scored):
    for columns in GROUPS.values():
        for column in columns:
            summary = scored[column.task]
            assert column.metric in summary["metrics"]
            if column.is_averaged:
                assert summary["metric"] == column.metric
            assert summary["score"] is None or 0 <= summary["score"] <= 1
    assert sum(summary["score"] is not None for summary in scored.values()) >= 16


def test_cross_validated_tasks_have_a_score_of_every_fold(scored):
    for name, task in TASKS.items():
        assert len(scored[name]["splits"]) == (task.folds or 1), name


def test_the_scores_appear_in_the_paper_s_tables(scored):
    config = load_config()
    table = score_table.read_table(Path("reports/scores"), config.hear.tasks, config.score, [MODEL])
    params = flatten(YAML(typ="safe").load(Path("params.yaml")))
    result = compare(table, params, left_out=0)
    assert [t.group for t in result.tables] == list(GROUPS)
    ours = [row for row in result.tables[0].rows if not row.is_published]
    assert len(ours) == 1
    assert result.tables[0].mean(ours[0]) is not None


def test_audio_that_tasks_share_was_embedded_once(scored, repository):
    """The cache has one entry per distinct clip of the tasks that share audio."""
    clips = {p.read_bytes() for name in TASKS if shares_audio(name)
             for p in (repository / "data/hear" / name).glob("16000/*/*")}  # fmt: skip
    with diskcache.Cache(str(repository / ".work/embeddings-cache")) as cache:
        assert len(cache) == len(clips)
