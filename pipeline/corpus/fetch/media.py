"""Find the media behind a recording's address with yt-dlp, and fetch one clip of it.

A recording is a local file or any address that yt-dlp supports; both are handled alike.
"""

import hashlib
import io
import logging
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from yt_dlp import YoutubeDL
from yt_dlp.utils import YoutubeDLError

from pipeline.core.settings import NetworkParams
from pipeline.corpus.clips import ledger
from pipeline.corpus.clips.segments import Segment
from pipeline.corpus.fetch import failures, requirements
from pipeline.corpus.fetch.clip_store import Outcome
from pipeline.corpus.fetch.cutting import MIN_CLIP_S, Media, cut, local_path
from pipeline.corpus.fetch.failures import UnavailableError


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


def downloader(params: NetworkParams) -> YoutubeDL:
    """Return a yt-dlp that only looks recordings up; each thread needs its own.

    Cookies are kept in memory: given a path, each thread would overwrite the user's file.
    """
    silent = logging.getLogger("yt_dlp")  # the exceptions repeat all that it logs of a failure
    silent.setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "format": "bestaudio/best",
        "socket_timeout": params.timeout_s,
        "enable_file_urls": True,
        "extract_flat": "in_playlist",  # a page that lists recordings is not one
        "cachedir": False,
        "js_runtimes": {name: {} for name in requirements.JS_RUNTIMES},
        "color": "never",
        "logger": silent,
        "noprogress": True,
    }
    if params.cookies:
        options["cookiefile"] = io.StringIO(Path(params.cookies).read_text(encoding="utf-8"))
    if params.proxy:
        options["proxy"] = params.proxy
    return YoutubeDL(options)


def resolve(site: YoutubeDL, url: str) -> Media:
    """Find the media behind a recording's URL.

    Raises:
        UnavailableError: there are none, or the site does not serve them.
    """
    path = local_path(url)
    if path is not None and not path.exists():
        raise UnavailableError("gone", f"there is no file {path.name}")
    if path is not None and not path.is_file():  # reading a named pipe may never end
        raise UnavailableError("no_audio", f"{path.name} is a folder, pipe or device, not a file")
    try:
        info = site.extract_info(url, download=False)
    except YoutubeDLError as error:
        raise failures.classify_extraction(error) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # An extractor met an answer that it cannot handle; one recording must not stop the rest.
        raise UnavailableError("transient", f"yt-dlp failed: {error!r}") from error
    if not info or "url" not in info:
        raise UnavailableError("no_audio", "the address leads to a page, not to a recording")
    return media_of(site, info)


def media_of(site: YoutubeDL, info: dict[str, Any]) -> Media:
    """Return what FFmpeg needs of yt-dlp's answer, with the cookies that belong to its host."""
    if not info["url"].startswith(("http://", "https://")):
        return Media(info["url"], {})
    headers = dict(info.get("http_headers") or {})
    if cookies := site.cookiejar.get_cookie_header(info["url"]):
        headers["Cookie"] = cookies
    return Media(info["url"], headers, site.params.get("proxy") or "")


def fetch_clip(
    site: YoutubeDL,
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
