"""The ledger: round trip, counts and the limits on failures."""

from pathlib import Path

import pytest

from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.ledger import Row
from pipeline.corpus.clips.segments import Segment

HEADER = ",".join(ledger.COLUMNS) + "\n"
GOOD = "0,a_0,a,0,1,,ok,,,,,,,,\n"


def rows(*statuses, stage="download"):
    """Rows with these statuses, the failed ones in `stage`."""
    made = []
    for i, status in enumerate(statuses):
        row = ledger.from_segment(Segment(i, f"id-{i}", 1.5, 11.5, "/m/1,/m/2"))
        made.append(row if status == "ok" else row.failed(stage, status, f'why "{i}", exactly'))
    return made


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "ledger.csv"
    full = Row(
        row=7, clip_id="a_1", recording_id="a", start_s=0.001, end_s=1 / 3, labels="x,y",
        bytes=12, sha256="00ff", duration_s=0.332, peak_db=-3.25, clipped=0.125, frames=34,
    )  # fmt: skip
    written = [*rows("ok", "gone", "silent"), full]
    ledger.write(path, written)
    assert ledger.read(path) == written


def test_the_file_is_a_plain_csv_with_the_documented_columns(tmp_path):
    ledger.write(tmp_path / "ledger.csv", rows("gone"))
    assert (tmp_path / "ledger.csv").read_bytes() == (
        b"row,clip_id,recording_id,start_s,end_s,labels,status,stage,reason,bytes,sha256,duration_s,peak_db,"
        b"clipped,frames\n"
        b'0,id-0_1500,id-0,1.5,11.5,"/m/1,/m/2",gone,download,"why ""0"", exactly",,,,,,\n'
    )


def test_counts_have_ok_first_and_then_the_commonest_failure():
    found = ledger.counts(rows("gone", "ok", "short", "gone"))
    assert list(found.items()) == [("ok", 1), ("gone", 2), ("short", 1)]
    assert ledger.summary(rows("ok", "gone")) == "1 ok, 1 gone"


def test_failures_up_to_the_limit_pass():
    ledger.check_failed(rows("ok", "ok", "gone", "ok"), "download", 0.25, Path("ledger.csv"))


def test_more_failures_than_the_limit_name_share_limit_reason_and_ledger():
    failed = rows("ok", "gone", "short", "gone")
    with pytest.raises(
        RuntimeError,
        match=r"3 of 4 clips \(75\.0%\) failed, more than download\.max_failed = 50\.0% .*"
        r"'gone' \(2\), for example id-1_1500: why \"1\".* in ledger\.csv\..*raise download\.max",
    ):
        ledger.check_failed(failed, "download", 0.5, Path("ledger.csv"))


def test_the_share_is_of_the_clips_that_reached_the_stage():
    mixed = [*rows("gone", "gone", "gone"), *rows("ok", "silent", stage="resample")]
    ledger.check_failed(mixed, "resample", 0.5, Path("ledger.csv"))
    with pytest.raises(RuntimeError, match=r"1 of 2 clips \(50\.0%\)"):
        ledger.check_failed(mixed, "resample", 0.4, Path("ledger.csv"))


def test_no_clip_left_is_an_error_whatever_the_limit():
    ledger.check_any(rows("ok", "gone"), Path("ledger.csv"))
    with pytest.raises(RuntimeError, match=r"None of 2 clips is left\. .*'gone' \(2\)"):
        ledger.check_any(rows("gone", "gone"), Path("ledger.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "is not a ledger: expected the columns row,clip_id,.*got a,b"),
        ("", "is not a ledger"),
        (
            HEADER + "x,a_0,a,0,1,,ok,,,,,,,,\n",
            "line 2 is broken: row is 'x', expected a whole numb",
        ),
        (HEADER + "0,a_0,a\n", "line 2 is broken: it has 3 cells, expected 15"),
        (HEADER + "0,a_0,a,0,1,,ok,,,,,,,,,\n", "line 2 is broken: it has 16 cells"),
        (
            HEADER + GOOD + "1,a_0,a,0,one,,ok,,,,,,,,\n",
            "line 3 is broken: end_s is 'one', expected",
        ),
        (
            HEADER + "0,a_0,a,nan,1,,ok,,,,,,,,\n",
            "start_s is 'nan', expected a number of 0 or more",
        ),
        (HEADER + "0,a_0,a,0,1,,ok,,,-5,,,,,\n", "bytes is '-5', expected a whole number"),
        (HEADER + "0,a_0,a,0,1,,ok,,,5.5,,,,,\n", "bytes is '5.5', expected a whole number"),
        (HEADER + "0,a_0,a,0,1,,ok,,,,,,-1e9,,\n", "peak_db is '-1e9', expected a number of -1000"),
        (HEADER + "0,a_0,a,0,1,,ok,,,,,,,-1,\n", "clipped is '-1', expected a number of 0 or more"),
        (HEADER + ",a_0,a,0,1,,ok,,,,,,,,\n", "line 2 is broken: row is empty"),
        (HEADER + "0,a_0,a,0,1,,,,,,,,,,\n", "status is empty"),
        (
            HEADER + "0,a_0,a,0,1,,ok,," + "x" * 200_000 + ",,,,,,\n",
            "line 2 is broken: field larger",
        ),
        (HEADER + GOOD + "1,\xff\n", r"ledger\.csv, line 3 is not UTF-8 text"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    path = tmp_path / "ledger.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        ledger.read(path)
