"""The columns of the paper's tables 1, 2 and 3: groups of tasks, each with its metrics."""

from dataclasses import dataclass

Key = tuple[str, str]  # task (folder name), metric (heareval's name)


@dataclass(frozen=True)
class Column:
    """One task and metric of a table."""

    task: str  # folder name
    name: str  # as in the paper
    metric: str
    is_averaged: bool = True
    is_error: bool = False  # lower is better

    @property
    def key(self) -> Key:
        """Task and metric, by which a score is found."""
        return self.task, self.metric


ACCURACY, MAP, PITCH = "top1_acc", "mAP", "pitch_acc"
ERROR_RATE = "segment_1s_er"
DCASE, MAESTRO = "dcase2016_task2-hear2021-full", "maestro-v3.0.0-5h"
GROUPS: dict[str, tuple[Column, ...]] = {
    "speech": (
        Column("tfds_crema_d-1.0.0-full", "CREMA-D", ACCURACY),
        Column("libricount-v1.0.0-hear2021-full", "LbC", ACCURACY),
        Column("speech_commands-v0.0.2-5h", "SPC-5h", ACCURACY),
        Column("speech_commands-v0.0.2-full", "SPC-F", ACCURACY),
        Column("vocal_imitation-v1.1.3-full", "VocIm", MAP),
        Column("vox_lingua_top10-hear2021-full", "VoxL", ACCURACY),
    ),
    "environmental sound": (
        Column("esc50-v2.0.0-full", "ESC-50", ACCURACY),
        Column("fsd50k-v1.0-full", "FSD50K", MAP),
        Column("gunshot_triangulation-v1.0-full", "Gunshot", ACCURACY),
    ),
    "music": (
        Column("beijing_opera-v1.0-hear2021-full", "Beijing", ACCURACY),
        Column("tfds_gtzan-1.0.0-full", "GTZAN-Genre", ACCURACY),
        Column("tfds_gtzan_music_speech-1.0.0-full", "GTZAN-M/S", ACCURACY),
        Column("mridangam_stroke-v1.5-full", "Mrd-Stroke", ACCURACY),
        Column("mridangam_tonic-v1.5-full", "Mrd-Tonic", ACCURACY),
        Column("nsynth_pitch-v2.2.3-5h", "NSynth 5h", PITCH),
        Column("nsynth_pitch-v2.2.3-50h", "NSynth 50h", PITCH),
    ),
    "timestamps": (
        Column(DCASE, "DCASE onset F", "event_onset_200ms_fms"),
        Column(DCASE, "DCASE error rate", ERROR_RATE, is_averaged=False, is_error=True),
        Column(MAESTRO, "MAESTRO onset F", "event_onset_50ms_fms"),
        Column(MAESTRO, "MAESTRO onset+offset F", "event_onset_offset_50ms_20perc_fms",
               is_averaged=False),
    ),
}  # fmt: skip
PAPER_TASKS = frozenset(column.task for columns in GROUPS.values() for column in columns)
