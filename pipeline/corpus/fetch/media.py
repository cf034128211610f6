"""Find the media behind a recording's address with yt-dlp, and fetch one clip of it.

A recording is a local file or any address that yt-dlp supports; both are handled alike.
"""

import hashlib
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from yt_dlp.utils import YoutubeDLError

from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch import failures
from pipeline.corpus.fetch.clip_store import Outcome
from pipeline.corpus.fetch.cutting import MIN_CLIP_S, Media, cut, local_path
from pipeline.corpus.fetch.failures import UnavailableError
from pipeline.corpus.fetch.look_up import LookUp


def recording_url(template: str, recording_id: str) -> str:
    """Return the URL of a recording; a template without a scheme is a path."""
    if "://" in template:
        return template.replace("{recording_id}", quote(recording_id))
    return Path(template.replace("{recording_id}", recording_id)).absolute().as_uri()


def file_state(url: str) -> str:
    """Return size and time of a local recording, "" if it is missing or not local."""
    path = local_path(url)
    if path is None or not path.exists():
        return ""
    state = path.stat()
    return f"{state.st_size} bytes of {state.st_mtime_ns} ns"


def resolve(site: LookUp, url: str) -> Media:
    """Find the media behind a recording's URL.

    Raises:
        UnavailableError: there are none, or the site does not serve them.
    """
    if (path := local_path(url)) is not None:
        return _local_media(path, url)
    try:
        info = site.find(url)
    except UnavailableError:
        raise
    except YoutubeDLError as error:
        raise failures.classify_extraction(error) from error
    except Exception as error:  # one recording must not stop the rest, whatever a site answers
        failures.check_machine(error)
        raise UnavailableError("transient", f"yt-dlp failed: {error!r}") from error
    if not info or "url" not in info:
        raise UnavailableError("no_audio", "the address leads to a page, not to a recording")
    return media_of(site, info)


def _local_media(path: Path, url: str) -> Media:
    if not path.exists():
        raise UnavailableError("gone", f"there is no file {path.name}")
    if not path.is_file():  # reading a named pipe may never end
        raise UnavailableError("no_audio", f"{path.name} is a folder, pipe or device, not a file")
    return Media(url, {})


def media_of(site: LookUp, info: dict[str, Any]) -> Media:
    """Return what FFmpeg needs of yt-dlp's answer, with the cookies that belong to its host.

    Raises:
        UnavailableError: the media are not on the web; a page could name any file of this machine.
    """
    if not info["url"].startswith(("http://", "https://")):
        scheme = info["url"].partition(":")[0]
        raise UnavailableError("bad_address", f"the site names media at {scheme}:, not on the web")
    headers = dict(info.get("http_headers") or {})
    if cookies := site.cookiejar.get_cookie_header(info["url"]):
        headers["Cookie"] = cookies
    return Media(info["url"], headers, site.params.get("proxy") or "")


def fetch_clip(
    site: LookUp,
    url: str,
    segment: Segment,
    target: Path,
    timeout_s: float,
    stop: threading.Event,
) -> Outcome:
    """Fetch one clip into `target`, in one attempt.

    Raises:
        UnavailableError: it is unavailable.
    """
    duration_s = cut(resolve(site, url), segment, target, timeout_s, stop)
    if duration_s < MIN_CLIP_S:
        reason = f"the recording ends before it: {duration_s:.3f} of {segment.duration_s:.3f} s"
        raise UnavailableError("short", reason)
    content = target.read_bytes()
    return Outcome(
        status=ledger.OK,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        duration_s=round(duration_s, 6),
    )
