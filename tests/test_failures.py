"""Classes of failures, from what yt-dlp and FFmpeg say (their wording, abridged)."""

import pytest
from yt_dlp.utils import DownloadError, ExtractorError, GeoRestrictedError, UnsupportedError

from pipeline.corpus.fetch import failures


def raised(cause, message=None):
    """The error that yt-dlp raises for a cause."""
    return DownloadError(f"ERROR: {message or cause}", (type(cause), cause, None))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Video unavailable. This video has been removed by the uploader", "gone"),
        ("Video unavailable. This video is no longer available because the YouTube account "
         "associated with this video has been terminated.", "gone"),
        ("Private video. Sign in if you've been granted access to this video", "gone"),
        ("Video unavailable. This video contains content from X, who has blocked it on copyright "
         "grounds", "gone"),
        ("The uploader has not made this video available in your country", "geo"),
        ("Sign in to confirm your age. This video may be inappropriate for some users", "login"),
        ("Join this channel to get access to members-only content like this video", "login"),
        ("Sign in to confirm you're not a bot. Use --cookies", "blocked"),
        ("This content isn't available, try again later. Your account has been rate-limited by "
         "YouTube for up to an hour", "blocked"),
        ("This video is private", "gone"),
        ("This video is DRM protected", "gone"),
        ("This video requires payment to watch", "login"),
        ("Unable to extract player response", "transient"),
        ("Requested format is not available", "transient"),
    ],
)  # fmt: skip
def test_messages_of_sites_are_classified(message, kind):
    error = failures.classify_extraction(raised(ExtractorError(message, expected=True)))
    assert error.kind == kind


def test_some_exceptions_are_classified_by_their_type():
    assert failures.classify_extraction(raised(GeoRestrictedError("x"))).kind == "geo"
    assert failures.classify_extraction(raised(UnsupportedError("http://x"))).kind == "no_audio"


def test_the_reason_is_the_same_for_every_clip_and_machine():
    message = (
        "\x1b[0;31mERROR:\x1b[0m [youtube] --PJHxphWEs: Video unavailable\n  (really) "
        "(caused by <HTTPError 404: Not Found at 0x7f12>)"
    )
    error = failures.classify_extraction(DownloadError(message))
    assert error.reason == "Video unavailable (really)"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("[in#0 @ 0x5583] Error opening input: Server returned 404 Not Found", "gone"),
        ("[in#0 @ 0x5583] Error opening input: Server returned 4XX Client Error, but not one of "
         "40{0,1,3,4}", "gone"),
        ("[in#0 @ 0x5583] Error opening input: Server returned 401 Unauthorized", "login"),
        ("[in#0 @ 0x5583] Error opening input: Server returned 403 Forbidden", "transient"),
        ("[in#0 @ 0x5583] Error opening input: Server returned 429 Too Many Requests", "blocked"),
        ("[in#0 @ 0x5583] Error opening input: Server returned 5XX Server Error reply",
         "transient"),
        ("[http @ 0x5583] Stream ends prematurely at 100, should be 200", "transient"),
        ("[tcp @ 0x5583] Connection to tcp://x failed: Connection refused", "transient"),
        ("[in#0 @ 0x5583] Error opening input: Invalid data found when processing input",
         "corrupt"),
        ("Stream map '' matches no streams.", "no_audio"),
        ("", "corrupt"),
    ],
)  # fmt: skip
def test_messages_of_ffmpeg_are_classified(line, kind):
    error = failures.classify_cutting(f"{line}\n")
    assert error.kind == kind
    assert "0x" not in error.reason
    assert error.reason


def test_damage_that_ffmpeg_skips_is_a_failure():
    failures.check_damage("")
    failures.check_damage("[https @ 0x1] The specified session has been invalidated\n")
    with pytest.raises(failures.UnavailableError) as error:
        failures.check_damage("[in#0/ogg @ 0x5583] CRC mismatch!\n")
    assert (error.value.kind, error.value.reason) == (
        "corrupt", "the recording is damaged: CRC mismatch!",
    )  # fmt: skip


def test_a_full_disk_is_not_a_failure_of_a_clip():
    with pytest.raises(OSError, match="No space left on device"):
        failures.classify_cutting("[out#0 @ 0x1] Error writing trailer: No space left on device")
