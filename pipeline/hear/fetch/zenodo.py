"""Files of a Zenodo record: its listing, and downloads that go on from the byte they had.

A file is kept in `.work/archives/` while it is fetched and used. Its name there begins with its
checksum, so that what is added to it later belongs to the same file.
"""

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import requests
from pydantic import AliasPath, BaseModel, Field, ValidationError
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3 import BaseHTTPResponse
from urllib3.util import Retry

from pipeline.core.settings import NetworkParams
from pipeline.core.stage import root
from pipeline.hear.params import ZenodoParams

logger = logging.getLogger(__name__)

RETRIED = (429, 500, 502, 503, 504)
BLOCK = 1 << 16  # bytes
DOWNLOADS = 2  # of a file whose checksum is wrong after the first
LATER = (
    "run it again later to go on with what is here; or, if the archives are on this disk already, "
    "unpack them and use hear.source = folder, hear.sources.folder.path = their folder tasks"
)


class Archive(BaseModel):
    """One file of a record."""

    key: Annotated[str, Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")]  # its name, a plain one
    size: int = Field(ge=1)  # bytes
    checksum: str = Field(pattern=r"^md5:[0-9a-f]{32}$")
    address: str = Field(validation_alias=AliasPath("links", "self"))

    @property
    def md5(self) -> str:
        """Checksum in hexadecimal digits."""
        return self.checksum.removeprefix("md5:")


class Record(BaseModel):
    """What is used of a record."""

    files: list[Archive]


class _LoggedRetry(Retry):
    """Retries, at the time that the site names or after a growing pause, that say so."""

    def sleep(self, response: BaseHTTPResponse | None = None) -> None:
        last = self.history[-1]
        asked_s = self.get_retry_after(response) if response else None
        wait_s = asked_s or self.get_backoff_time()
        reason = f"status {last.status}" if last.status else _last_reason(last.error)
        logger.warning("%s: %s; next attempt in %.0f s", last.url, reason, wait_s)
        super().sleep(response)


@contextmanager
def downloaded_archive(params: ZenodoParams, task: str, network: NetworkParams) -> Iterator[Path]:
    """Yield the path of a task's archive, whole, which is removed if the block ends without error.

    Raises:
        ValueError: the record has no such task.
        OSError: the record or the archive cannot be fetched, or another process is fetching it.
    """
    with _session(network) as session:
        archive = _find(_listing(session, params, network), params, task)
        path = root() / ".work" / "archives" / f"{archive.md5[:8]}-{archive.key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            _lock(file, path)
            _download_and_verify(session, archive, file, network)
            yield path
            path.unlink()


def _session(network: NetworkParams) -> requests.Session:
    session = requests.Session()
    retries = _LoggedRetry(
        total=network.tries - 1,
        status_forcelist=RETRIED,
        backoff_factor=network.backoff_s,
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retries))
        if network.proxy:
            session.proxies[scheme.removesuffix("://")] = network.proxy
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # _LoggedRetry tells
    session.headers["Accept-Encoding"] = "identity"  # bytes are counted as they are in the file
    return session


def _listing(
    session: requests.Session, params: ZenodoParams, network: NetworkParams
) -> dict[str, Archive]:
    address = params.listing.replace("{record}", str(params.record))
    hint = "correct hear.sources.zenodo.record or .listing in params.yaml"
    with _get(session, address, {}, network, hint) as answer:
        try:
            record = Record.model_validate_json(answer.content)
        except (requests.RequestException, ValidationError) as error:
            raise OSError(f"{address} lists no files of a record: {error}\nCheck it.") from error
    return {archive.key: archive for archive in record.files}


def _find(files: dict[str, Archive], params: ZenodoParams, task: str) -> Archive:
    key = params.archive.replace("{task}", task)
    if key not in files:
        pattern = re.escape(params.archive).replace(re.escape("{task}"), "(.+)")
        known = [match[1] for name in sorted(files) if (match := re.fullmatch(pattern, name))]
        raise ValueError(
            f"hear.tasks: {task!r} is no task of Zenodo's record {params.record}, which has no "
            f"file {key}; available: {', '.join(known) or 'none'}."
        )
    return files[key]


def _get(
    session: requests.Session,
    address: str,
    headers: dict[str, str],
    network: NetworkParams,
    hint: str = "",
) -> requests.Response:
    """Return an answer whose body is still to be read.

    Raises:
        OSError: after `network.tries` attempts, if another may help.
    """
    try:
        answer = session.get(address, headers=headers, stream=True, timeout=network.timeout_s)
        if not answer.ok:
            answer.close()
            answer.raise_for_status()
    except requests.RequestException as error:
        final = error.response is not None and error.response.status_code not in RETRIED
        remedy = hint if final and hint else LATER
        tried = "" if final else f" after {network.tries} attempts"
        raise OSError(
            f"{address} cannot be fetched{tried} ({_last_reason(error)}): {remedy}."
        ) from error
    return answer


def _last_reason(error: BaseException | None) -> str:
    """Return what an error of requests or urllib3 comes from, without what it is wrapped in."""
    while error and (inner := error.__cause__ or error.__context__):
        error = inner
    return str(error) or type(error).__name__


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RuntimeError(f"Another process is using {path}. Wait for it, or end it.") from None


def _download_and_verify(
    session: requests.Session, archive: Archive, file: BinaryIO, network: NetworkParams
) -> None:
    """Complete a file of which a part may be here, and check it."""
    for _ in range(DOWNLOADS):
        _resume(session, archive, file, network)
        with open(file.name, "rb") as content:
            md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False))
        if md5.hexdigest() == archive.md5:
            return
        logger.warning("%s: its md5 is %s, not %s", archive.key, md5.hexdigest(), archive.md5)
        file.truncate(0)
    raise OSError(
        f"{archive.address} has not the md5 {archive.md5} that the record lists, after "
        f"{DOWNLOADS} downloads: the last has {md5.hexdigest()}. Nothing is kept; run it again."
    )


def _resume(
    session: requests.Session, archive: Archive, file: BinaryIO, network: NetworkParams
) -> None:
    """Append to a file what it lacks, with a new request wherever a transfer breaks."""
    vain = 0  # transfers in a row that have brought nothing
    with tqdm(
        total=archive.size, desc=archive.key, unit="B", unit_scale=True, disable=None
    ) as progress:
        while (have := _size(file)) < archive.size:
            progress.update(have - progress.n)
            try:
                _transfer(session, archive, file, have, network, progress)
            except requests.RequestException as error:
                vain = 0 if _size(file) > have else vain + 1
                if vain >= network.tries:
                    raise OSError(_broken_transfer(archive, file, network, error)) from error
                told = "%s: transfer broken at byte %d of %d (%s); going on"
                logger.warning(told, archive.key, _size(file), archive.size, _last_reason(error))
                time.sleep(network.backoff_s * vain)


def _transfer(
    session: requests.Session,
    archive: Archive,
    file: BinaryIO,
    have: int,
    network: NetworkParams,
    progress: tqdm,
) -> None:
    headers = {"Range": f"bytes={have}-"} if have else {}
    with _get(session, archive.address, headers, network) as answer:
        if answer.status_code != requests.codes.partial_content:
            file.truncate(0)  # the site sends the file from its start
            progress.update(-progress.n)
        for block in answer.iter_content(BLOCK):
            file.write(block)
            progress.update(len(block))


def _broken_transfer(
    archive: Archive, file: BinaryIO, network: NetworkParams, error: Exception
) -> str:
    return (
        f"{archive.address}: the transfer broke {network.tries} times at byte {_size(file)} "
        f"of {archive.size} ({_last_reason(error)}). What is here is kept; run it again to go on "
        "from there."
    )


def _size(file: BinaryIO) -> int:
    file.flush()
    return os.fstat(file.fileno()).st_size
