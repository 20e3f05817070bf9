"""Requests to object stores: sizes, ranges of bytes and listings, with time limits and tries.

Any filesystem of fsspec will do. Clients are made when they are first needed, in the process that needs them. What a
request meets becomes an `UnreadableError` whose reason holds no user, password or signature.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from fastvtp.data.locations import without_secrets
from fastvtp.data.storage.last_used import LastUsed
from fastvtp.data.storage.settings import storage_settings
from fastvtp.data.storage.stored_file import UnreadableError
from fastvtp.errors import UserError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 8.0  # seconds
_PATIENCE = (408, 425, 429)  # of HTTP's 4xx those that ask to come again
# bytes of a request: few enough to come in time over a slow link, more where it is fast
_FIRST_AT_ONCE, _LEAST_AT_ONCE, _MOST_AT_ONCE = 2_000_000, 250_000, 8_000_000
_MOST_KNOWN = 1 << 16
_GRUDGE = 30.0  # seconds that a refusal holds, so that not every member of a lost tar costs all tries
# what filesystems call the fields that change with the content, the surest first
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "generation"),
    *("LastModified", "Last-Modified", "mtime", "created"),
)
_EXTRAS = {"s3": "fastvtp[s3]", "s3a": "fastvtp[s3]", "http": "fastvtp[shards]", "https": "fastvtp[shards]"}

# not of the module: what is drawn here must not change what a run draws
_jitter = random.Random()
_known: LastUsed[str, RemoteObject] = LastUsed(_MOST_KNOWN)
_refused: dict[str, tuple[float, str]] = {}
_paces: dict[str, int] = {}  # bytes of the next request, by server
_without_ranges: set[str] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class RemoteObject:
    """What a store says of an object.

    Attributes:
        size: bytes.
        version: changes with the content (ETag, checksum or time of change), None where the store tells none.
    """

    size: int
    version: str | None


class NoRangesError(Exception):
    """A server sends no parts of an object; `content` is all of it, None where that was not asked for again."""

    def __init__(self, content: bytes | None):
        super().__init__("the server sends no parts of objects")
        self.content = content


class _ShortReadError(Exception):
    pass


class _SlowTimeoutError(TimeoutError):
    def __init__(self, asked: int):
        super().__init__(asked)
        self.asked = asked


class _Limits(threading.local):
    until: float | None = None


_limits = _Limits()


def look_up(location: str) -> RemoteObject:
    """Return size and version of an object, which is taken to stay as it is when this process first meets it.

    Raises:
        UnreadableError: it is not there, or cannot be had.
        UserError: the filesystem is unknown, or its package is not installed.
    """
    with _lock:
        if (known := _known.get(location)) is not None:
            return known
        if location in _refused and time.monotonic() < _refused[location][0]:
            raise UnreadableError(location, _refused[location][1])
    try:
        said = _request(location, "info")
    except UnreadableError as error:
        with _lock:
            if len(_refused) > _MOST_KNOWN:
                _refused.clear()
            _refused[location] = (time.monotonic() + _GRUDGE, error.reason)
        raise
    if said.get("type") == "directory":
        raise UnreadableError(location, "not a file but a folder")
    if said.get("size") is None:
        raise UnreadableError(location, "the server does not say how long it is")
    return _known.keep(location, RemoteObject(int(said["size"]), _version(said)))


def _version(said: dict[str, Any]) -> str | None:
    return next((f"{said[name]}" for name in _VERSIONS if said.get(name)), None)


def forget(location: str) -> None:
    """Ask the store again the next time that an object is looked up."""
    with _lock:
        _known.forget(location)
        _refused.pop(location, None)


def read_range(location: str, start: int, end: int, whole: int) -> Iterator[bytes]:
    """Read bytes `start` to before `end` of an object of `whole` bytes, in parts as large as the link is fast.

    Raises:
        UnreadableError: it cannot be had.
        NoRangesError: the server sends no parts of it. All of it can be read nevertheless.
    """
    at, is_all = start, (start, end) == (0, whole)
    while at < end:
        try:
            data = _read_part(location, at, end, whole, is_all=is_all)
        except NoRangesError as error:
            if not is_all or error.content is None:
                raise
            data = error.content[at:]
        yield data
        at += len(data)


def _read_part(location: str, first: int, end: int, whole: int, *, is_all: bool) -> bytes:
    """Read from `first` on as much as comes in good time: half as much after each request that took too long, twice as
    much after one that was quick."""
    server = "/".join(location.split("/", 3)[:3])
    if location in _without_ranges and not is_all:
        raise NoRangesError(None)

    def attempt(filesystem: Any, path: str, seconds: float) -> bytes:
        asked = min(end - first, _MOST_AT_ONCE, max(_paces.get(server, _FIRST_AT_ONCE), _LEAST_AT_ONCE))
        asked = end - first if location in _without_ranges else asked
        started = time.monotonic()
        try:
            data = _call(filesystem, "cat_file", seconds, path, start=first, end=first + asked)
        except Exception as error:
            if not _is_timeout(error):
                raise
            _paces[server] = asked // 2
            raise _SlowTimeoutError(asked) from None
        if len(data) not in (asked, whole):
            raise _ShortReadError(f"the connection ended after {len(data)} of {asked} bytes")
        if time.monotonic() - started < seconds / 4:
            _paces[server] = max(_paces.get(server, _FIRST_AT_ONCE), min(2 * asked, _MOST_AT_ONCE))
        if len(data) == asked:
            return data
        if len(_without_ranges) > _MOST_KNOWN:
            _without_ranges.clear()
        _without_ranges.add(location)
        _say_no_ranges(without_secrets(server))
        raise NoRangesError(data)

    return _tried(location, attempt)


@cache
def _say_no_ranges(server: str) -> None:
    most = f"objects of up to {storage_settings().whole_mb:g} MB are fetched whole, larger ones cannot be read"
    logger.warning("%s: the server sends no parts of objects (ranges of HTTP): %s", server, most)


def matching(pattern: str) -> list[str]:
    """List the objects that a URL with "*", "?" or "[...]" matches, sorted. Raises UnreadableError, UserError."""
    found = _request(pattern, "glob")
    return sorted(_filesystem(pattern)[0].unstrip_protocol(name) for name in found)


def write_object(location: str, content: bytes) -> None:
    """Write an object. Raises UnreadableError where the store does not let us."""
    _request(location, "pipe_file", content)
    forget(location)


def _filesystem(location: str) -> tuple[Any, str]:
    """Return the client for a URL, and the path that it knows the object by."""
    scheme = location.partition("://")[0]
    try:
        import fsspec

        return fsspec.url_to_fs(location)
    except ImportError as error:
        package = _EXTRAS.get(scheme)
        how = f"pip install '{package}'" if package else str(error)
        raise UserError(f"{scheme}:// needs a package that is not installed: {how}") from None
    except ValueError as error:
        if "rotocol" in str(error):
            raise UserError(f"{without_secrets(location)}: fsspec knows no filesystem {scheme}://") from None
        raise


@contextmanager
def one_opening() -> Iterator[None]:
    """Let all requests that this thread makes within the block take `StorageSettings.object_seconds` together.

    A block within another ends no later than that one.
    """
    own, outer = time.monotonic() + storage_settings().object_seconds, _limits.until
    with _until(own if outer is None else min(own, outer)):
        yield


def no_opening() -> AbstractContextManager[None]:
    """Let each request within the block have its own time again, whatever `one_opening` is around it."""
    return _until(None)


@contextmanager
def _until(moment: float | None) -> Iterator[None]:
    before, _limits.until = _limits.until, moment
    try:
        yield
    finally:
        _limits.until = before


def _request(location: str, name: str, *args: Any) -> Any:
    return _tried(location, lambda filesystem, path, seconds: _call(filesystem, name, seconds, path, *args))


def _tried(location: str, attempt: Callable[[Any, str, float], _T]) -> _T:
    """Return what `attempt` does with client, path and seconds that it may take; try again where that may help."""
    settings = storage_settings()
    started, done = time.monotonic(), 0
    until = started + settings.object_seconds if _limits.until is None else _limits.until
    while True:
        limit = min(settings.request_seconds, until - time.monotonic())
        if limit <= 0:
            raise UnreadableError(location, f"not read within {settings.object_seconds:g} s")
        try:
            return attempt(*_filesystem(location), limit)
        except (UserError, NoRangesError):
            raise
        except Exception as error:
            done += 1
            reason = _in_words(error, limit)
            if _is_final(error):
                raise UnreadableError(location, reason) from None
        spent = time.monotonic() - started
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (done - 1)) * _jitter.uniform(0.5, 1.5)
        if done >= settings.tries or time.monotonic() + wait >= until:
            tries = "once" if done == 1 else f"{done} times"
            raise UnreadableError(location, f"{reason} (tried {tries} in {spent:.0f} s)")
        time.sleep(wait)


def _call(filesystem: Any, name: str, seconds: float, *args: Any, **kwargs: Any) -> Any:
    """Call a method of a filesystem, for so many seconds at most."""
    if filesystem.async_impl:
        from fsspec.asyn import sync

        return sync(filesystem.loop, getattr(filesystem, f"_{name}"), *args, timeout=seconds, **kwargs)
    answer: list[Any] = []

    def work() -> None:
        try:
            answer.extend((getattr(filesystem, name)(*args, **kwargs), None))
        except BaseException as error:
            answer.extend((None, error))

    # one that stands still is left alone: nothing can end it
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer:
        raise TimeoutError
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _status(error: BaseException | None) -> int | None:
    """Return the status of HTTP that an error stands for."""
    if error is None:
        return None
    response = getattr(error, "response", None)  # of botocore's
    said = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    code = getattr(error, "code", None)
    if type(error).__module__.startswith("aiohttp.http"):
        code = None  # it calls an answer that broke off a bad request
    for value in (said, getattr(error, "status", None), code):
        if isinstance(value, int) and 400 <= value < 600:
            return value
    return _status(error.__cause__)


def _is_timeout(error: BaseException) -> bool:
    return "timeout" in type(error).__name__.lower()


def _is_final(error: BaseException) -> bool:
    """Tell whether the same request would fail again."""
    if (status := _status(error)) is not None:
        return 400 <= status < 500 and status not in _PATIENCE
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _is_final(error.__cause__)  # fsspec says so of every failure to look an object up
    if _is_timeout(error) or isinstance(error, _ShortReadError):
        return False
    impossible = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError)
    return isinstance(error, (*impossible, NotImplementedError)) or "Credentials" in type(error).__name__


def _in_words(error: BaseException, seconds: float) -> str:
    status = _status(error)
    if status == 404 or (status is None and isinstance(error, FileNotFoundError) and _is_final(error)):
        return "no such object (404)"
    if status in (401, 403) or (status is None and isinstance(error, PermissionError)):
        return f"access denied ({status or 403})"
    if status is not None:
        return f"the server answers with status {status}"
    if isinstance(error, _SlowTimeoutError):
        return f"{error.asked / 1e6:.2g} MB did not come within {seconds:.3g} s: no answer, or a slow link"
    if _is_timeout(error):
        return f"no answer within {seconds:.3g} s"
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _in_words(error.__cause__, seconds)
    text = _without_secrets(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}..."


def _without_secrets(text: str) -> str:
    return re.sub(r"(\w://)[^/\s@]*@", r"\1", re.sub(r"\?[^\s'\")]*", "", text))
