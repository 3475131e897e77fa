"""S3 as every stage sees it: s3fs with one policy of retries, and errors that say what to do.

Endpoint, region and credentials come from where AWS's own tools take them: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of the machine or pod.

What passes by itself (500, 502, 503, 504, throttling, connections that are refused, reset or cut, answers that do not
come) is tried again with growing pauses: `REQUEST_ATTEMPTS` times by botocore, and the whole of that `ROUNDS` times by
s3fs, which takes about forty seconds where nothing answers. Then it is a `StoreUnavailableError`. A write that was
tried again may have been done by the attempt whose answer was lost; `ObjectStore.put_new` knows its own.
"""

import asyncio
import errno
import logging
import os
import secrets
import time
from collections.abc import Iterator
from typing import Any

from aiohttp.client_exceptions import ClientError as HTTPError
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, ParamValidationError
from botocore.exceptions import ConnectionError as BotoConnectionError
from fsspec.asyn import sync_wrapper
from s3fs.core import S3FileSystem, set_custom_error_handler

from pipelines.store_errors import StoreUnavailableError

REQUEST_ATTEMPTS = 4
ROUNDS = 8
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""Without a byte; then it is tried again."""
CONNECTIONS = 64
OBJECTS_PER_PAGE = 1000  # the most that S3 gives
PATIENCE_SECONDS = 10.0
"""After which a request that is not done, or is tried again and again, is told; one in `WARN_SECONDS`."""
WARN_SECONDS = 30.0

_WRITER = "segpipe-writer"
"""Metadata of an object that was written exclusively: which of many writers did it."""
_UNANSWERED = (HTTPClientError, BotoConnectionError)
_THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed"})
_CONFLICT = "ConditionalRequestConflict"
_CONFLICT_ATTEMPTS = 5
_ERRNO = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, FileExistsError: errno.EEXIST}

logger = logging.getLogger(__name__)


class ObjectStore(S3FileSystem):  # type: ignore[misc]  # s3fs ships no types
    """See the module. Made by `object_store`; travels to Ray's workers by its settings, never with credentials."""

    retries = ROUNDS

    async def _call_s3(self, method: str, *arguments: Any, **named: Any) -> Any:
        bucket, key = named.get("Bucket", ""), named.get("Key", "")
        timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, _warn, f"{method} of s3://{bucket}/{key}")
        try:
            return await super()._call_s3(method, *arguments, **named)
        except (OSError, BotoCoreError, HTTPError) as error:
            raise _explained(error, bucket=bucket, key=key) from _cause(error)
        finally:
            timer.cancel()

    call_s3 = sync_wrapper(_call_s3)

    async def _cat_file(
        self,
        path: str,
        version_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        chunksize: int | None = None,
        max_concurrency: int | None = None,
    ) -> bytes:
        """One request for the whole, whose body is tried again too: s3fs would ask for the size, then for pieces."""
        try:
            data: bytes = await super()._cat_file(path, version_id, start, end, chunksize, max_concurrency=1)
        except (BotoCoreError, HTTPError) as error:  # the body was cut, each time
            bucket, key, _ = self.split_path(path)
            raise _explained(error, bucket=bucket, key=key) from error
        return data

    async def _exists(self, path: str) -> bool:
        """s3fs takes a bucket that it may not see, or a server that does not answer, for one that is not there."""
        bucket, key, _ = self.split_path(self._strip_protocol(path))
        if key or not bucket:
            return bool(await super()._exists(path))
        try:
            await self._call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except FileNotFoundError:
            return False
        return True

    exists = sync_wrapper(_exists)

    def put_new(self, path: str, data: bytes) -> bool:
        """Create an object that must not exist yet (`If-None-Match: *`); of many writers exactly one gets True.

        A request that was tried again is refused where its first attempt had succeeded without our knowing: the
        writer's mark on the object tells.
        """
        mark = secrets.token_hex(16)
        for attempt in range(_CONFLICT_ATTEMPTS):
            try:
                self.pipe_file(path, data, mode="create", Metadata={_WRITER: mark})
            except FileExistsError:
                return self._is_marked(path, mark)
            except OSError as error:
                # s3fs knows AWS's own answer; other servers say the same without naming the condition.
                code = _code(error)
                if code in ("PreconditionFailed", "412", "NoSuchUpload"):
                    return self._is_marked(path, mark)
                if code != _CONFLICT or attempt == _CONFLICT_ATTEMPTS - 1:
                    raise
                time.sleep(0.2 * 2**attempt)  # another writer is at it this moment: S3 asks to try again
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def put(self, path: str, data: bytes) -> None:
        """Replace an object. Of a large one, the request that completes it may be done, and tried again."""
        mark = secrets.token_hex(16)
        try:
            self.pipe_file(path, data, Metadata={_WRITER: mark})
        except OSError as error:
            if _code(error) != "NoSuchUpload" or not self._is_marked(path, mark):
                raise

    def _is_marked(self, path: str, mark: str) -> bool:
        bucket, key, _ = self.split_path(path)
        try:
            found = self.call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:  # written, and removed since
            return False
        metadata: dict[str, str] = found.get("Metadata", {})
        return metadata.get(_WRITER) == mark

    def pages(self, path: str, *, one_level: bool = False) -> Iterator[dict[str, Any]]:
        """Everything below a folder or bucket, page by page, as `fs.find(detail=True)` tells it, or as `fs.ls` does.

        Nothing is held: s3fs's own listings keep a kilobyte of every object until they end.

        Args:
            path: the folder or bucket.
            one_level: what lies directly in it, folders too.
        """
        bucket, key, _ = self.split_path(path)
        prefix = f"{key.rstrip('/')}/" if key else ""
        named: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": OBJECTS_PER_PAGE}
        if one_level:
            named["Delimiter"] = "/"
        while True:
            page = self.call_s3("list_objects_v2", **named)
            for below in page.get("CommonPrefixes", []):
                yield {"name": f"{bucket}/{below['Prefix'].rstrip('/')}", "size": 0, "type": "directory"}
            for entry in page.get("Contents", []):
                yield entry | {"name": f"{bucket}/{entry['Key']}", "size": entry["Size"], "type": "file"}
            if not page.get("IsTruncated"):
                return
            named["ContinuationToken"] = page["NextContinuationToken"]


def object_store() -> ObjectStore:
    """The file system of `s3://`; one per process, since s3fs does not survive a fork."""
    retries: dict[str, Any] = {} if "AWS_RETRY_MODE" in os.environ else {"mode": "standard"}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = REQUEST_ATTEMPTS
    # botocore reads AWS_DEFAULT_REGION alone; AWS's other tools, and pyarrow, read AWS_REGION.
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
    return ObjectStore(
        config_kwargs={
            "retries": retries,
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": ANSWER_SECONDS,
            "max_pool_connections": CONNECTIONS,
        },
        client_kwargs={"region_name": region} if region else {},
        use_listings_cache=False,  # other processes write what this one looks for
    )


def _passes_by_itself(error: Exception) -> bool:
    """Whether s3fs shall begin a new round, of an error that it does not know itself."""
    return isinstance(error, _UNANSWERED) or (isinstance(error, ClientError) and _is_transient(error))


set_custom_error_handler(_passes_by_itself)

_last_warning = -WARN_SECONDS


def _warn(request: str) -> None:
    global _last_warning
    if time.monotonic() - _last_warning > WARN_SECONDS:
        _last_warning = time.monotonic()
        logger.warning("%s is not done after %.0f s; waiting, and trying again", request, PATIENCE_SECONDS)


def _is_transient(error: ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status in (500, 502, 503, 504) or error.response.get("Error", {}).get("Code") in _THROTTLED


def _cause(error: BaseException) -> BaseException:
    return error.__cause__ or error


def _code(error: OSError) -> str:
    """S3's own code of an error that s3fs translated, or an empty text."""
    response: dict[str, Any] = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _explained(error: Exception, *, bucket: str, key: str) -> Exception:
    """The same error as an OSError that names the object, and says what to do where that is known."""
    uri = f"s3://{bucket}/{key}"
    cause = _cause(error)
    if isinstance(cause, ClientError):
        if _is_transient(cause):
            return StoreUnavailableError(errno.EIO, f"the object store answers with errors ({cause}); try later", uri)
        assert isinstance(error, OSError), "s3fs translates what the server says"
        code = error.errno or _ERRNO.get(type(error), errno.EIO)
        return type(error)(code, f"{error.strerror or error}{_advice(cause)}", uri)
    if isinstance(error, ParamValidationError):
        return ValueError(f"{uri!r} is no address of an object ({error}); correct it")
    if isinstance(error, (*_UNANSWERED, HTTPError)):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
        message = f"the object store at {endpoint} does not answer ({error}); check AWS_ENDPOINT_URL, or try later"
        return StoreUnavailableError(errno.EIO, message, uri)
    if isinstance(error, BotoCoreError):  # no credentials, no such profile, an expired token
        return PermissionError(
            errno.EACCES,
            f"{error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role",
            uri,
        )
    return error


def _advice(error: ClientError) -> str:
    code = error.response.get("Error", {}).get("Code")
    if code in ("AccessDenied", "403", "Forbidden"):
        return "; these credentials may not do this there: ask for access, or correct AWS_PROFILE or the role"
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return "; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in again"
    if code == "NoSuchBucket":
        return "; correct the bucket's name or AWS_ENDPOINT_URL, or create it"
    return ""
