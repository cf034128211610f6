"""Small corpora in the published layout of each source, made of different tones in noise."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import h5py
import imageio_ffmpeg
import numpy as np
import soundfile

RATE = 22050


def tone(pitch, seconds=1.0, rate=RATE, channels=1):
    """[S] or [S, C], 16-bit; the pitch in Hz also seeds the noise; channels differ in level."""
    wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)
    wave += np.random.default_rng(pitch).uniform(-0.1, 0.1, len(wave))
    samples = np.rint(wave * 32768).astype(np.int16)
    return samples if channels == 1 else np.stack([samples // (c + 1) for c in range(channels)], 1)


def audio(pitch=440, kind="flac", seconds=1.0, rate=RATE, channels=1):
    """The content of an audio file."""
    samples = tone(pitch, seconds, rate, channels)
    if kind != "m4a":
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format=kind.upper())
        return file.getvalue()
    wav = audio(pitch, "wav", seconds, rate, channels)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", "pipe:0", "-c:a", "aac",
               "-movflags", "frag_keyframe", "-f", "mp4", "pipe:1"]  # fmt: skip
    return subprocess.run(command, input=wav, capture_output=True, check=True).stdout


def folder(root):
    """Four formats in nested folders, one recording of 5 s; ids are paths."""
    contents = {"b/one.flac": audio(300), "b/two words.mp3": audio(400, "mp3"),
                "long.wav": audio(500, "wav", seconds=5.0, channels=2),
                "z.ogg": audio(600, "ogg"), "notes.txt": b"not audio"}  # fmt: skip
    write(root, contents)


def write(root, contents):
    for name, content in contents.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


FSD50K = """fname,labels,mids,split
64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train
16399,Purr,/m/02yds9,val
21914,Bark,/m/05tny_,train
"""


def fsd50k(root, table=FSD50K):
    files = {f"FSD50K.dev_audio/{name}.wav": audio(300 + i, "wav", rate=44100)
             for i, name in enumerate(("64760", "16399", "21914"))}  # fmt: skip
    write(root, files | {"FSD50K.ground_truth/dev.csv": table.encode()})


TAR_MEMBERS = {
    "tr-0.tar": [
        ("-ab_1.flac", audio(300)),
        ("-ab_1.json", json.dumps({"labels": ["/m/1", "/m/2"], "id": 5}).encode()),
        ("sub/two.mp3", audio(400, "mp3")),
        ("sub/two.cls", b"7\n"),
    ],
    "tr-1.tar": [
        ("three.txt", b"a dog\nbarks"),
        ("three.m4a", audio(500, "m4a")),
        ("four.ogg", audio(600, "ogg")),
    ],
}


def tar(root, tars=None):
    Path(root).mkdir(parents=True, exist_ok=True)
    for name, members in (tars or TAR_MEMBERS).items():
        with tarfile.open(Path(root, name), "w") as file:
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))


PARQUET_ROWS = [
    {"video_id": f"{i}-_abcdefgh", "labels": ["/m/1", f"/m/{i}"], "human_labels": ["Speech", "x"],
     "audio": {"bytes": audio(300 + 50 * i), "path": f"{i}.flac"}}
    for i in range(5)
]  # fmt: skip


def parquet(root, rows=None, name="00.parquet", group=2):
    """`group` rows in each row group."""
    import pyarrow
    import pyarrow.parquet

    Path(root).mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(PARQUET_ROWS if rows is None else rows)
    pyarrow.parquet.write_table(table, Path(root, name), row_group_size=group)


def hdf5(root):
    """PANNs' layout, with a row that its packer left empty; then PaSST's."""
    Path(root).mkdir(parents=True, exist_ok=True)
    with h5py.File(Path(root, "panns.h5"), "w") as file:
        file["audio_name"] = np.array([b"Y-1nilez17Dg.wav", b"", b"Yabcdefghijk.wav"], "S20")
        waves = [tone(300, rate=32000), np.zeros(32000, np.int16), tone(400, rate=32000)]
        file["waveform"] = np.stack(waves)
        file["target"] = np.eye(3, 527, dtype=bool) | np.eye(3, 527, 5, dtype=bool)
        file.attrs["sample_rate"] = np.int32(32000)
    with h5py.File(Path(root, "passt.hdf5"), "w") as file:
        file["audio_name"] = np.array([b"Yzbcdefghijk.mp3"], "S20")
        mp3 = file.create_dataset("mp3", (1,), h5py.vlen_dtype(np.uint8))
        mp3[0] = np.frombuffer(audio(500, "mp3", rate=32000), np.uint8)
        file["target"] = np.packbits(np.eye(1, 527, 526, dtype=bool), axis=1)


def recordings(root):
    """A segment list with two recordings of 6 s."""
    rows = ['-a, 0.000, 2.000, "/m/1,/m/2"', '-a, 2.500, 4.000, "/m/1"', 'b, 4.000, 9.000, ""']
    table = "\r\n".join(["YTID, start_seconds, end_seconds, positive_labels", *rows]).encode()
    write(root, {"segments.csv": table, "recordings/-a.ogg": audio(300, "ogg", 6.0),
                 "recordings/b.ogg": audio(400, "ogg", 6.0)})  # fmt: skip


def audioset(root):
    """Two of Google's lists, the labels, and recordings of 4 s."""
    head = "# Segments csv created\n# num_ytids=1\n# YTID, start_seconds, end_seconds, x\n"
    write(root, {
        "balanced_train_segments.csv": f'{head}abcdefghij-, 0.000, 2.000, "/m/1"\n'.encode(),
        "eval_segments.csv": f'{head}-_bcdefghij, 1.000, 3.000, "/m/1,/m/2"\n'.encode(),
        "class_labels_indices.csv": b'index,mid,display_name\n0,/m/1,"Speech, loud"\n1,/m/2,x\n',
        "abcdefghij-.wav": audio(300, "wav", 4.0), "-_bcdefghij.wav": audio(400, "wav", 4.0),
    })  # fmt: skip


MIRRORED = ["--PJHxphWEs", "Y_abcdefghi", "0aBcDeFgHi_"]  # video ids


def audioset_list(path, ids=(*MIRRORED, "goneVideo-1", "goneVideo-2")):
    """Google's list of what a mirror should hold; each clip begins at another second."""
    rows = "".join(f'{name}, {30 + i}.000, {31 + i}.000, "/m/{i}"\n' for i, name in enumerate(ids))
    write(path.parent, {path.name: f"# Segments csv\n{rows}".encode()})


def parquet_mirror(root):
    """agkphysics/AudioSet: a folder for each subset; FLAC of 24 bits at 48 or 44.1 kHz."""
    for subset, ids in {"unbal_train": MIRRORED, "eval": ["evalVideo-1"]}.items():
        rows = [
            {"video_id": name, "audio": {"bytes": flac_24(48000 if i else 44100), "path": None},
             "labels": [f"/m/{i}", "/m/x"], "human_labels": ["Speech", "x"]}
            for i, name in enumerate(ids)
        ]  # fmt: skip
        parquet(Path(root, "data", subset), rows, "00.parquet")


def flac_24(rate):
    file = io.BytesIO()
    wave = tone(300, rate=rate, channels=2) / 32768
    soundfile.write(file, wave, rate, format="FLAC", subtype="PCM_24")
    return file.getvalue()


def tar_mirror(root):
    """confit/audioset-16khz-wds: numbered samples; id and names of the labels in the JSON."""
    members = []
    for i, name in enumerate(MIRRORED):
        values = {"id": name, "label": ["Speech", f"Name, {i}"], "label_id": [0, i]}
        members.append((f"sample-{i:09d}.json", json.dumps(values).encode()))
        members.append((f"sample-{i:09d}.wav", audio(300, "wav", rate=16000)))
    tar(Path(root, "2m", "train"), {"shard-00000.tar": members})


# Source -> what makes it, parameters of its section, and its labels by clip id.
SOURCES = {
    "url": (recordings, {}, {
        "-a_0": "/m/1,/m/2", "-a_2500": "/m/1", "b_4000": "",
    }),
    "audioset": (audioset, {"subsets": ["eval", "balanced_train"]}, {
        "-_bcdefghij_1000": "/m/1,/m/2", "abcdefghij-_0": "/m/1",
    }),
    "folder": (folder, {"max_clip_s": 2.0}, {
        "b/one_0": "", "b/two words_0": "", "long_0": "", "long_2000": "", "long_4000": "",
        "z_0": "",
    }),
    "fsd50k": (fsd50k, {}, {
        "64760_0": "/m/02sgy,/m/0342h", "16399_0": "/m/02yds9", "21914_0": "/m/05tny_",
    }),
    "tar": (tar, {}, {
        "-ab_1_0": "/m/1,/m/2", "sub/two_0": "7", "three_0": "a dog barks", "four_0": "",
    }),
    "parquet": (parquet, {}, {f"{i}-_abcdefgh_0": f"/m/1,/m/{i}" for i in range(5)}),
    "hdf5": (hdf5, {}, {
        "-1nilez17Dg_0": "0,5", "abcdefghijk_0": "2,7", "zbcdefghijk_0": "526",
    }),
}  # fmt: skip
