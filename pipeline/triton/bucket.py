"""Objects in a bucket of S3 or of what speaks its protocol; each is read and written whole."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import InputError, StorageError

CONNECTIONS = 16

# As Triton reads it: an endpoint of one's own comes with its port.
_LOCATION = re.compile(
    r"s3://(?:(?P<endpoint>https?://[A-Za-z0-9.-]+:[0-9]+)/)?(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])"
    r"/(?P<prefix>[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*)/*"
)
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 30
_ATTEMPTS = 4  # of each request, with pauses of up to a few seconds
_DELETED_AT_ONCE = 1000  # S3's limit

_CONDITION_FAILED = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_ADVICE = {
    "NoSuchBucket": "make the bucket or name another --model-repository",
    "AccessDenied": "these credentials need the rights to list, read, write and delete there",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": "renew the credentials",
    "RequestTimeTooSkewed": "set this machine's clock",
}


class Object(NamedTuple):
    """`age` in seconds since it was written, by the store's clock, which counts whole ones."""

    content: bytes
    etag: str
    age: float


class Bucket:
    """The bucket that a location names, and the prefix in it.

    The location is `s3://bucket/prefix` or, with an endpoint, `s3://http://host:port/bucket/prefix`. Credentials and
    region come from where AWS's own tools take them: AWS_* variables, profiles, the machine's role.

    InputError for another location, or where the package boto3 is missing. What fails in the store is a
    StorageError, after a few attempts, at the latest three minutes after the store has stopped to answer.
    """

    def __init__(self, location: str) -> None:
        match = _LOCATION.fullmatch(location)
        if match is None:
            shown = re.sub(r"//[^/]*@", "//...@", location)  # what stands there may be a secret
            raise InputError(
                f"{shown} is no place in an object store: expected s3://bucket/prefix or "
                "s3://http://host:port/bucket/prefix, with a prefix, as a repository's history lies beside it"
            )
        if find_spec("boto3") is None:
            raise InputError(
                f"{location} needs the package boto3: run "
                "bin/python -m pip install --require-hashes -r requirements-s3.lock"
            )
        self.location = location.rstrip("/")
        self.prefix = match["prefix"]
        self._name = match["bucket"]
        with self._errors():
            self._client = _client(match["endpoint"])

    def sizes(self, prefix: str, after: str = "") -> dict[str, int]:
        """Bytes of all objects whose keys begin with the prefix, by key, in the order of keys; those after a key."""
        with self._errors():
            pages = self._pages(Prefix=prefix, StartAfter=after)
            return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", ())}

    def folders(self, prefix: str) -> list[str]:
        """What follows the prefix, which ends with a slash, up to the next slash."""
        with self._errors():
            pages = self._pages(Prefix=prefix, Delimiter="/")
            return [found["Prefix"][len(prefix) : -1] for page in pages for found in page.get("CommonPrefixes", ())]

    def get(self, key: str) -> Object:
        """FileNotFoundError where it is missing."""
        with self._errors():
            try:
                answer = self._client.get_object(Bucket=self._name, Key=key)
            except self._client.exceptions.NoSuchKey:
                raise FileNotFoundError(f"{key} is not in {self.location}") from None
            now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            age = (now - answer["LastModified"]).total_seconds()
            return Object(answer["Body"].read(), answer["ETag"], age)

    def upload(self, key: str, file: Path) -> None:
        with self._errors(), file.open("rb") as body:
            self._client.put_object(Bucket=self._name, Key=key, Body=body)

    def create(self, key: str, content: bytes) -> bool:
        """Write an object where there is none, else return False. The content must be like no other.

        Then who gets no answer, and a refusal at the second attempt, can tell whether it was he who wrote.
        """
        return self._put(key, content, IfNoneMatch="*") or self._holds(key, content)

    def replace(self, key: str, content: bytes, etag: str) -> bool:
        """Write where there is still the object of this ETag, else return False. As of `create`."""
        return self._put(key, content, IfMatch=etag) or self._holds(key, content)

    def demand_conditions(self, key: str, content: bytes) -> None:
        """StorageError where the store wrote an object once more that is there, which is then removed.

        Some stores know no conditions, and publishers would overwrite each other's objects.
        """
        if self._put(key, content, IfNoneMatch="*"):
            self.delete([key])
            raise StorageError(
                f"the store of {self.location} ignores If-None-Match, by which publishers agree: nothing went live; "
                "use a store that honours it"
            )

    def delete(self, keys: Iterable[str]) -> None:
        """In the order of the keys, by the thousand. Those that are missing do no harm."""
        wanted = [{"Key": key} for key in keys]
        with self._errors():
            for start in range(0, len(wanted), _DELETED_AT_ONCE):
                chunk = wanted[start : start + _DELETED_AT_ONCE]
                answer = self._client.delete_objects(Bucket=self._name, Delete={"Objects": chunk, "Quiet": True})
                for failed in answer.get("Errors", ()):
                    raise self._refused(failed["Code"], f"{failed['Key']}: {failed['Message']}")

    def _pages(self, **request: Any) -> Iterator[dict[str, Any]]:
        yield from self._client.get_paginator("list_objects_v2").paginate(Bucket=self._name, **request)

    def _put(self, key: str, content: bytes, **condition: str) -> bool:
        from botocore.exceptions import ClientError

        with self._errors():
            try:
                self._client.put_object(Bucket=self._name, Key=key, Body=content, **condition)
            except ClientError as error:
                if error.response["Error"]["Code"] not in _CONDITION_FAILED:
                    raise
                return False
            return True

    def _holds(self, key: str, content: bytes) -> bool:
        try:
            return self.get(key).content == content
        except FileNotFoundError:
            return False

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from botocore import exceptions

        try:
            yield
        except exceptions.ClientError as error:
            answer = error.response["Error"]
            raise self._refused(answer.get("Code", ""), answer.get("Message", "")) from error
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            # Its text has the whole address of the request.
            raise StorageError(
                f"{self.location} cannot be reached ({type(error).__name__}): check the address and the network, then "
                "try again"
            ) from error
        except exceptions.BotoCoreError as error:
            raise StorageError(f"{self.location} cannot be used: {str(error).rstrip('.')}; {_CREDENTIALS}") from error

    def _refused(self, code: str, message: str) -> StorageError:
        advice = _ADVICE.get(code, "mend the store, then try again")
        return StorageError(f"{self.location}: {code}: {message.rstrip('.')}; {advice}")


def _client(endpoint: str | None) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_ANSWER_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
        max_pool_connections=CONNECTIONS,
        # Triton does not know AWS_ENDPOINT_URL: a location must be one place for both.
        ignore_configured_endpoint_urls=True,
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    return boto3.client("s3", endpoint_url=endpoint, config=config)
