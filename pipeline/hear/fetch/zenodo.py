"""Files of a Zenodo record: their listing, and downloads that resume where they stopped.

A file is kept in `.work/archives/` while it is downloaded and used. Its name there begins with its
checksum, so that a resumed download appends to the same file.
"""

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

from pipeline.core.locks import exclusive
from pipeline.core.repository import in_copy
from pipeline.core.settings import NetworkParams
from pipeline.core.stage import work_root
from pipeline.hear.params import ZenodoParams

logger = logging.getLogger(__name__)

RETRIED = (429, 500, 502, 503, 504)
BLOCK = 1 << 16  # bytes
DOWNLOADS = 2  # of a file whose checksum is wrong
TRY_LATER = (
    "run it again later to resume; or, if the archives are already on this disk, unpack them and "
    "set hear.source = folder and hear.sources.folder.path to the folder tasks in them"
)


class Archive(BaseModel):
    """One file of a record."""

    key: Annotated[str, Field(pattern=r"^[^/\\]*[^/\\.][^/\\]*$")]  # file name without a path
    size: int = Field(ge=1)  # bytes
    checksum: str = Field(pattern=r"^md5:[0-9a-f]{32}$")
    address: str = Field(validation_alias=AliasPath("links", "self"))

    @property
    def md5(self) -> str:
        """Checksum in hexadecimal digits."""
        return self.checksum.removeprefix("md5:")


class Record(BaseModel):
    """The part of a record that is used."""

    files: list[Archive]


class _LoggedRetry(Retry):
    """Retry when the site says so, or after a growing pause, and log each wait."""

    def sleep(self, response: BaseHTTPResponse | None = None) -> None:
        last = self.history[-1]
        retry_after_s = self.get_retry_after(response) if response else None
        wait_s = retry_after_s or self.get_backoff_time()
        reason = f"status {last.status}" if last.status else _last_reason(last.error)
        logger.warning("%s: %s; next attempt in %.0f s", last.url, reason, wait_s)
        super().sleep(response)


@contextmanager
def downloaded_archive(params: ZenodoParams, task: str, network: NetworkParams) -> Iterator[Path]:
    """Yield the path of a task's complete archive; remove it if the block ends without an error.

    Raises:
        ValueError: the record has no such task.
        OSError: the record or the archive cannot be downloaded.
        RuntimeError: another process is using the archive; a copy of the repository waits instead.
    """
    with _session(network) as session:
        archive = _find(_listing(session, params, network), params, task)
        work = work_root()
        path = work / "archives" / f"{archive.md5[:8]}-{archive.key}"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = work / f"{path.name}.lock"
        with exclusive(lock, f"using {path}", wait=in_copy()), path.open("ab") as file:
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
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # _LoggedRetry logs instead
    session.headers["Accept-Encoding"] = "identity"  # so that byte ranges are those of the file
    return session


def _listing(
    session: requests.Session, params: ZenodoParams, network: NetworkParams
) -> dict[str, Archive]:
    address = params.listing.replace("{record}", str(params.record))
    hint = "correct hear.sources.zenodo.record or .listing in params.yaml"
    with _get(session, address, {}, network, hint) as response:
        try:
            record = Record.model_validate_json(response.content)
        except (requests.RequestException, ValidationError) as error:
            raise OSError(
                f"{address} does not list the files of a record: {error}\nCheck it."
            ) from error
    return {archive.key: archive for archive in record.files}


def _find(files: dict[str, Archive], params: ZenodoParams, task: str) -> Archive:
    key = params.archive.replace("{task}", task)
    if key not in files:
        pattern = re.escape(params.archive).replace(re.escape("{task}"), "(.+)")
        known = [match[1] for name in sorted(files) if (match := re.fullmatch(pattern, name))]
        raise ValueError(
            f"hear.tasks: {task!r} is not a task in Zenodo record {params.record}, which has no "
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
    """Return a response whose body has not been read yet.

    Raises:
        OSError: the request failed, after `network.tries` attempts if retrying may help.
    """
    try:
        response = session.get(address, headers=headers, stream=True, timeout=network.timeout_s)
        if not response.ok:
            response.close()
            response.raise_for_status()
    except requests.RequestException as error:
        final = error.response is not None and error.response.status_code not in RETRIED
        remedy = hint if final and hint else TRY_LATER
        attempts = "" if final else f" after {network.tries} attempts"
        raise OSError(
            f"{address} cannot be downloaded{attempts} ({_last_reason(error)}): {remedy}."
        ) from error
    return response


def _last_reason(error: BaseException | None) -> str:
    """Return the message of the innermost cause of an error of requests or urllib3."""
    while error and (inner := error.__cause__ or error.__context__):
        error = inner
    return str(error) or type(error).__name__


def _download_and_verify(
    session: requests.Session, archive: Archive, file: BinaryIO, network: NetworkParams
) -> None:
    """Complete a possibly partial file, and verify its checksum."""
    for _ in range(DOWNLOADS):
        _resume(session, archive, file, network)
        with open(file.name, "rb") as content:
            md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False))
        if md5.hexdigest() == archive.md5:
            return
        logger.warning("%s: its md5 is %s, not %s", archive.key, md5.hexdigest(), archive.md5)
        file.truncate(0)
    raise OSError(
        f"{archive.address} does not have the md5 {archive.md5} that the record lists, after "
        f"{DOWNLOADS} downloads: the last has {md5.hexdigest()}. Nothing is kept; run it again."
    )


def _resume(
    session: requests.Session, archive: Archive, file: BinaryIO, network: NetworkParams
) -> None:
    """Append the missing bytes, with a new request whenever a transfer breaks."""
    failures = 0  # consecutive transfers without any new byte
    with tqdm(
        total=archive.size, desc=archive.key, unit="B", unit_scale=True, disable=None
    ) as progress:
        while (size := _size(file)) < archive.size:
            progress.update(size - progress.n)
            try:
                _transfer(session, archive, file, size, network, progress)
            except requests.RequestException as error:
                failures = 0 if _size(file) > size else failures + 1
                if failures >= network.tries:
                    raise OSError(_broken_transfer(archive, file, network, error)) from error
                message = "%s: transfer broken at byte %d of %d (%s); resuming"
                logger.warning(message, archive.key, _size(file), archive.size, _last_reason(error))
                time.sleep(network.backoff_s * failures)


def _transfer(
    session: requests.Session,
    archive: Archive,
    file: BinaryIO,
    first_byte: int,
    network: NetworkParams,
    progress: tqdm,
) -> None:
    headers = {"Range": f"bytes={first_byte}-"} if first_byte else {}
    with _get(session, archive.address, headers, network) as response:
        if response.status_code != requests.codes.partial_content:
            file.truncate(0)  # the site ignores the range
            progress.update(-progress.n)
        for block in response.iter_content(BLOCK):
            file.write(block)
            progress.update(len(block))


def _broken_transfer(
    archive: Archive, file: BinaryIO, network: NetworkParams, error: Exception
) -> str:
    return (
        f"{archive.address}: the transfer broke {network.tries} times at byte {_size(file)} "
        f"of {archive.size} ({_last_reason(error)}). The partial file is kept; run it again to "
        "resume."
    )


def _size(file: BinaryIO) -> int:
    file.flush()
    return os.fstat(file.fileno()).st_size
