"""Segment lists: what is read, and what is reported for each broken row."""

import re
from pathlib import Path

import pytest

from pipeline.corpus.clips.segments import Segment, read

PUBLISHED = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=2, num_segs=2, num_unique_labels=3, num_positive_labels=3
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"
_a-_4h2B5tM, 0.500, 8.250, "/m/04rlf"
"""
ROWS = [
    Segment(0, "--PJHxphWEs", 30.0, 40.0, "/m/09x0r,/t/dd00088"),
    Segment(1, "_a-_4h2B5tM", 0.5, 8.25, "/m/04rlf"),
]


@pytest.fixture
def listed(tmp_path):
    """A function that writes a segment list and returns its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "segments.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def without_comments(text):
    return "".join(line for line in text.splitlines(True) if not line.startswith("#"))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(PUBLISHED, id="as published"),
        pytest.param(without_comments(PUBLISHED), id="no header"),
        pytest.param("# one line\n" + without_comments(PUBLISHED), id="one comment"),
        pytest.param(
            "YTID,start_seconds,end_seconds,positive_labels\n" + without_comments(PUBLISHED),
            id="header row",
        ),
        pytest.param(
            "ytid, start_seconds, end_seconds, positive_labels\n# later\n"
            + without_comments(PUBLISHED),
            id="comment after a lower-case header",
        ),
        pytest.param(PUBLISHED.replace("\n", "\r\n"), id="Windows line ends"),
        pytest.param("\ufeff" + without_comments(PUBLISHED), id="byte order mark"),
        pytest.param(PUBLISHED + "\n  \n", id="blank lines at the end"),
        pytest.param(PUBLISHED.rstrip("\n"), id="no line end at the end"),
        pytest.param(PUBLISHED.replace(", ", ","), id="no spaces"),
    ],
)
def test_copies_of_the_published_lists_read_the_same(listed, text):
    assert read(listed(text)) == ROWS


def test_integer_seconds_and_missing_labels_are_read(listed):
    assert read(listed("abc, 30, 40, \n")) == [Segment(0, "abc", 30.0, 40.0, "")]


def test_a_clip_is_named_by_recording_and_start_in_milliseconds():
    assert [row.clip_id for row in ROWS] == ["--PJHxphWEs_30000", "_a-_4h2B5tM_500"]
    assert ROWS[1].duration_s == 7.75


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("abc, 0.000, 10.000", "expected 4 columns, got 3: abc, 0.000, 10.000"),
        ('abc, 0.000, 10.000, "/m/1", x', "expected 4 columns, got 5"),
        ("abc, 0.000, 10.000, /m/1,/m/2", "expected 4 columns, got 5"),
        ('abc, 10.000, 10.000, "/m/1"', "end 10.000 must be later than start 10.000"),
        ('abc, 20.000, 10.000, "/m/1"', "end 10.000 must be later than start 20.000"),
        ('abc, -1.000, 10.000, "/m/1"', "start -1.000 is negative"),
        ('abc, zero, 10.000, "/m/1"', "start 'zero' is not a number"),
        ('abc, 0.000, nan, "/m/1"', "end 'nan' is not a number"),
        ('abc, 0.000, inf, "/m/1"', "end 'inf' is not a number"),
        ('abc, 0.000, 1_0, "/m/1"', "end '1_0' is not a number"),
        ('abc, , 10.000, "/m/1"', "start '' is not a number"),
        (', 0.000, 10.000, "/m/1"', "id '' must be of letters"),
        ('../etc, 0.000, 10.000, "/m/1"', "id '../etc' must be of letters"),
        (f'{"x" * 300}, 0.000, 10.000, ""', "id 'xxxxxxxxxxxxxxxxxxxx...' has 300 characters"),
        ('abc, 0.000, 10.000, "a\0b"', r"labels 'a\x00b' of 'abc' hold '\x00'"),
        ('abc, 0.000, 10.000, "/m/1', "expected 4 columns, got 1"),
        ('--PJHxphWEs, 30.0, 35.0, "/m/1"', "clip '--PJHxphWEs_30000' is listed on line 4"),
    ],
)
def test_a_broken_row_is_named_with_its_line_and_value(listed, row, message):
    path = listed(PUBLISHED + row + "\n")
    with pytest.raises(ValueError, match=re.escape(f"line 6: {message}")) as error:
        read(path)
    assert "1 broken row" in str(error.value)
    assert "correct or remove" in str(error.value)
    assert str(path) in str(error.value)


def test_all_broken_rows_are_named_up_to_ten(listed):
    path = listed(PUBLISHED + "".join(f"id{i}, 1, 0, x\n" for i in range(12)))
    with pytest.raises(ValueError, match=r"12 broken row.*(?s:.*)line 15: .*\n  and 2 more"):
        read(path)


@pytest.mark.parametrize("text", ["", "\n", "# YTID, start_seconds\n"])
def test_a_list_without_rows_is_an_error(listed, text):
    with pytest.raises(ValueError, match=r"lists no segments; expected rows such as --PJHx"):
        read(listed(text))


def test_a_missing_list_is_an_error_that_names_the_parameter(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no segment list .*`segments`.*params\.yaml"):
        read(tmp_path / "none.csv")


def test_a_list_in_another_encoding_is_an_error(listed):
    with pytest.raises(ValueError, match=r"segments\.csv, line 3 is not UTF-8 text.*save it as"):
        read(listed(b"# a list\r\nab, 0, 10, x\r\nabc, 0, 10, \xff\xfe\n"))
