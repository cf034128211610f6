"""Checks of the tasks that are to be evaluated, before any work starts."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pipeline.hear.tasks.task import Task, find_task, read_task

HEAR_RECORD = 6332517  # on Zenodo, HEAR 2021.3
HEAR_TASKS = (
    "beehive_states_fold0-v2-full",
    "beehive_states_fold1-v2-full",
    "beijing_opera-v1.0-hear2021-full",
    "dcase2016_task2-hear2021-full",
    "esc50-v2.0.0-full",
    "fsd50k-v1.0-full",
    "gunshot_triangulation-v1.0-full",
    "libricount-v1.0.0-hear2021-full",
    "maestro-v3.0.0-5h",
    "mridangam_stroke-v1.5-full",
    "mridangam_tonic-v1.5-full",
    "nsynth_pitch-v2.2.3-50h",
    "nsynth_pitch-v2.2.3-5h",
    "speech_commands-v0.0.2-5h",
    "speech_commands-v0.0.2-full",
    "tfds_crema_d-1.0.0-full",
    "tfds_gtzan-1.0.0-full",
    "tfds_gtzan_music_speech-1.0.0-full",
    "vocal_imitation-v1.1.3-full",
    "vox_lingua_top10-hear2021-full",
)
# Its scene tasks in the order in which they are probed: those with a validation split before those
# with folds, each by the number of clips (HEAR 2021, table 1), Beehive by its 96 hours.
HEAR_SCENES = (
    "nsynth_pitch-v2.2.3-5h",
    "speech_commands-v0.0.2-5h",
    "nsynth_pitch-v2.2.3-50h",
    "fsd50k-v1.0-full",
    "speech_commands-v0.0.2-full",
    "beehive_states_fold0-v2-full",
    "beehive_states_fold1-v2-full",
    "gunshot_triangulation-v1.0-full",
    "tfds_gtzan_music_speech-1.0.0-full",
    "beijing_opera-v1.0-hear2021-full",
    "vox_lingua_top10-hear2021-full",
    "tfds_gtzan-1.0.0-full",
    "esc50-v2.0.0-full",
    "vocal_imitation-v1.1.3-full",
    "libricount-v1.0.0-hear2021-full",
    "mridangam_stroke-v1.5-full",
    "mridangam_tonic-v1.5-full",
    "tfds_crema_d-1.0.0-full",
)
MAX_PROBED = 2  # tasks of `probe.tasks: auto`


def check_folder_tasks(folder: Path, tasks: Sequence[str], probed: Sequence[str]) -> None:
    """Check that a folder has the tasks, and that those to be probed are scene tasks.

    Raises:
        ValueError: a task is missing, invalid or of the wrong kind.
    """
    for name in tasks:
        find_task(folder, name)
    for name in probed:
        if read_task(folder / name).metadata.embedding_type == "event":
            raise ValueError(
                f"probe.tasks: {name} is an event task, and only scene tasks are probed. Remove it "
                "from probe.tasks; it can stay in hear.tasks."
            )


def check_published_tasks(tasks: Sequence[str]) -> None:
    """Check that HEAR's record on Zenodo has the tasks, without a request.

    Raises:
        ValueError: it does not have one of them.
    """
    for name in tasks:
        if name not in HEAR_TASKS:
            nearest = [
                f"did you mean {match!r}?" for match in get_close_matches(name, HEAR_TASKS, 1)
            ]
            hint = "".join(nearest) or f"it has {', '.join(HEAR_TASKS)}."
            raise ValueError(
                f"hear.tasks: {name!r} is not a task in Zenodo record {HEAR_RECORD}: {hint} "
                "Correct it; for a task of your own, use hear.source = folder or set "
                "hear.sources.zenodo.record to the record that has it."
            )


def choose_probed(folder: Path | None, tasks: Sequence[str]) -> list[str]:
    """Return the tasks that `probe.tasks: auto` stands for: a few scene tasks, the smallest first.

    Tasks with a validation split come before those with folds, of which the first one validates
    the probe, but is tested as well. Of a Zenodo record only HEAR's own tasks are known.

    Args:
        folder: parent folder of the tasks; None if they come from a Zenodo record.
        tasks: names.

    Raises:
        ValueError: a task in the folder is invalid.
    """
    if folder is None:
        return [name for name in HEAR_SCENES if name in tasks][:MAX_PROBED]
    found = [read_task(folder / name) for name in tasks]
    scenes = [task for task in found if task.metadata.embedding_type == "scene"]
    scenes.sort(key=lambda task: (task.metadata.split_mode != "trainvaltest", _clips(task)))
    return [task.name for task in scenes[:MAX_PROBED]]


def _clips(task: Task) -> int:
    return sum(len(files) for files in task.labels.values())
