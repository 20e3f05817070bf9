"""Requests to object stores: sizes, ranges of bytes and listings, with time limits and tries.

Any filesystem of fsspec will do. Clients are made when they are first needed, in the process that needs them. What a
request meets becomes an `UnreadableError` whose reason holds no user, password or signature.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from fastvtp.data.locations import without_secrets
from fastvtp.data.storage_settings import storage_settings
from fastvtp.data.stored_file import UnreadableError
from fastvtp.errors import UserError

_T = TypeVar("_T")
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 8.0  # seconds
_PATIENCE = (408, 425, 429)  # of HTTP's 4xx those that ask to come again
_MOST_AT_ONCE = 8_000_000  # bytes of a request, so that a slow one can be told from one that stands still
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
_known: OrderedDict[str, RemoteObject] = OrderedDict()
_refused: dict[str, tuple[float, str]] = {}
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


class _ShortReadError(Exception):
    pass


def look_up(location: str) -> RemoteObject:
    """Return size and version of an object, which is taken to stay as it is when this process first meets it.

    Raises:
        UnreadableError: it is not there, or cannot be had.
        UserError: the filesystem is unknown, or its package is not installed.
    """
    with _lock:
        if location in _known:
            _known.move_to_end(location)
            return _known[location]
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
    found = RemoteObject(int(said["size"]), _version(said))
    with _lock:
        _known[location] = found
        while len(_known) > _MOST_KNOWN:
            _known.popitem(last=False)
    return found


def _version(said: dict[str, Any]) -> str | None:
    return next((f"{said[name]}" for name in _VERSIONS if said.get(name)), None)


def forget(location: str) -> None:
    """Ask the store again the next time that an object is looked up."""
    with _lock:
        _known.pop(location, None)
        _refused.pop(location, None)


def read_range(location: str, start: int, end: int, whole: int) -> Iterator[bytes]:
    """Read bytes `start` to before `end` of an object of `whole` bytes, in parts as large as one request may be.

    Raises UnreadableError where it cannot be had.
    """
    for first in range(start, end, _MOST_AT_ONCE):
        last = min(end, first + _MOST_AT_ONCE)
        data = _request(location, "cat_file", start=first, end=last, check=_check_length(first, last, whole))
        # a server that knows no ranges answers with all of it
        yield data if len(data) == last - first else data[first:last]


def _check_length(first: int, last: int, whole: int) -> Callable[[bytes], None]:
    def check(data: bytes) -> None:
        if len(data) not in (last - first, whole):
            raise _ShortReadError(f"the connection ended after {len(data)} of {last - first} bytes")

    return check


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


def _request(location: str, name: str, *args: Any, check: Callable[[Any], None] | None = None, **kwargs: Any) -> Any:
    settings = storage_settings()
    started, done = time.monotonic(), 0
    while True:
        left = settings.object_seconds - (time.monotonic() - started)
        limit = min(settings.request_seconds, left)
        try:
            filesystem, path = _filesystem(location)
            result = _call(filesystem, name, limit, path, *args, **kwargs)
            if check is not None:
                check(result)
            return result
        except UserError:
            raise
        except Exception as error:
            done += 1
            reason = _in_words(error, limit)
            if _is_final(error):
                raise UnreadableError(location, reason) from None
        spent = time.monotonic() - started
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (done - 1)) * _jitter.uniform(0.5, 1.5)
        if done >= settings.tries or spent + wait >= settings.object_seconds:
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
    if _is_timeout(error):
        return f"no answer within {seconds:.3g} s"
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _in_words(error.__cause__, seconds)
    text = _without_secrets(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) < 200 else f"{text[:200]}..."


def _without_secrets(text: str) -> str:
    return re.sub(r"(\w://)[^/\s@]*@", r"\1", re.sub(r"\?[^\s'\")]*", "", text))
