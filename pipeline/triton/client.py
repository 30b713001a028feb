"""Ask a Triton server over HTTP and gRPC.

tritonclient is imported late, as it takes 0.3 s, and torch not at all: `bin/serve` lives long and needs neither much
memory nor time to start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pipeline.errors import InputError, ServerError
from pipeline.triton.model_config import INPUT_NAME as INPUT
from pipeline.triton.model_config import OUTPUT_NAME as OUTPUT

if TYPE_CHECKING:
    from pipeline.specs import Images, Probabilities

_TIMEOUT_SECONDS = 60.0
_NO_NAME = "-"  # no model is released under it
# Scheme; host, which may be an IPv6 address in brackets, and port.
_ADDRESS = re.compile(r"(?:(http|grpc)://)?((?:[\w.-]+|\[[\da-fA-F:]+\]):\d{1,5})")


class ModelState(NamedTuple):
    name: str
    version: str
    state: str
    reason: str


class ServedModel(NamedTuple):
    """What a server says of a model. `version` is the newest one that it serves; `shape`: channels, height, width."""

    version: int
    shape: tuple[int, int, int]
    classes: int
    max_batch_size: int


class Connection:
    """To one server, for any number of requests by one thread. ServerError where it is not there or refuses one."""

    def __init__(
        self, url: str, protocol: Any, client: Any, asking: Mapping[str, Any], describing: Mapping[str, Any]
    ) -> None:
        """`protocol`: tritonclient's module; what its methods take beside what both protocols take."""
        self._url = url
        self._protocol = protocol
        self._client = client
        self._asking = asking
        self._describing = describing

    def describe(self, model: str, version: int | None = None) -> ServedModel:
        """InputError where the model has other inputs or outputs than a released one."""
        with _server(model):
            metadata = self._client.get_model_metadata(model, str(version or ""), **self._describing)
            answer = self._client.get_model_config(model, str(version or ""), **self._describing)
            found = [
                (tensor["name"], tensor["datatype"], len(tensor["shape"]))
                for tensor in (*metadata["inputs"], *metadata["outputs"])
            ]
        # Over gRPC it lies one level deeper.
        config = answer.get("config", answer)
        batch = int(config.get("max_batch_size", 0))
        if found != [(INPUT, "UINT8", 4), (OUTPUT, "FP32", 2)] or not batch:
            raise InputError(
                f"{model} at {self._url} has {found} and batches of {batch}: expected {INPUT} UINT8 [N, C, H, W] and "
                f"{OUTPUT} FP32 [N, K], in batches; name a model that was released by bin/train"
            )
        channels, height, width = map(int, metadata["inputs"][0]["shape"][1:])
        classes = int(metadata["outputs"][0]["shape"][1])
        return ServedModel(max(map(int, metadata["versions"])), (channels, height, width), classes, batch)

    def classify(self, model: str, images: Images, version: int | None = None) -> Probabilities:
        """One request: uint8 [N, C, H, W] to float32 [N, K]."""
        probabilities: Probabilities = self._ask(model, images, version)
        return probabilities

    def ranked(self, model: str, images: Images, count: int, version: int | None = None) -> list[list[tuple[int, str]]]:
        """The `count` most probable classes of each image, by Triton's classification extension: index and label.

        A label is empty where the server has none.
        """
        # Each entry is "<value>:<index>:<label>", without the last part where there is none.
        rows = self._ask(model, images, version, class_count=count)
        parts = [[(entry.decode() + ":").split(":", 2) for entry in row] for row in rows]
        return [[(int(index), label.removesuffix(":")) for _, index, label in row] for row in parts]

    def _ask(self, model: str, images: Images, version: int | None, **wanted: int) -> Any:
        tensor = self._protocol.InferInput(INPUT, images.shape, "UINT8")
        tensor.set_data_from_numpy(np.ascontiguousarray(images))
        output = self._protocol.InferRequestedOutput(OUTPUT, **wanted)
        with _server(model):
            answer = self._client.infer(
                model, [tensor], outputs=[output], model_version=str(version or ""), **self._asking
            )
            return answer.as_numpy(OUTPUT)


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    """A connection over HTTP to `host:port` or `http://host:port`, over gRPC to `grpc://host:port`.

    InputError where the address is none. Whether a server is there turns out at the first request.
    """
    protocol, address = protocol_and_address(url)
    if protocol == "grpc":
        from tritonclient import grpc

        deadline = {"client_timeout": _TIMEOUT_SECONDS}
        with grpc.InferenceServerClient(address) as client:
            yield Connection(url, grpc, client, deadline, {**deadline, "as_json": True})
    else:
        from tritonclient import http

        with http.InferenceServerClient(address, network_timeout=_TIMEOUT_SECONDS) as client:
            yield Connection(url, http, client, {}, {})


def classify(url: str, model: str, images: Images, version: int | None = None) -> Probabilities:
    """One request: uint8 [N, C, H, W] to float32 [N, K], by the live version where none is named; as `connected`."""
    with connected(url) as connection:
        return connection.classify(model, images, version)


def top_labels(url: str, model: str, images: Images, version: int | None = None) -> list[str]:
    """The label that the server gives each image, by Triton's classification extension; as `connected`."""
    with connected(url) as connection:
        return [label for ((_, label),) in connection.ranked(model, images, 1, version)]


def load_model(url: str, model: str) -> None:
    """Have a server under explicit control load a model; ServerError gives Triton's reason where it cannot."""
    from tritonclient import http

    with _server(model), http.InferenceServerClient(url, network_timeout=_TIMEOUT_SECONDS) as client:
        client.load_model(model)


def protocol_and_address(url: str) -> tuple[Literal["http", "grpc"], str]:
    """The protocol and the `host:port` of what `connected` takes; InputError where the address is none."""
    found = _ADDRESS.fullmatch(url)
    if not found:
        raise InputError(f"{url!r} is no server's address: expected host:port, http://host:port or grpc://host:port")
    return "grpc" if found[1] == "grpc" else "http", found[2]


def http_address(url: str) -> str:
    """The `host:port` of that, or of `http://host:port`; InputError where it is neither."""
    found = _ADDRESS.fullmatch(url)
    if not found or found[1] == "grpc":
        raise InputError(f"{url!r} is no server's HTTP address: expected host:port or http://host:port")
    return found[2]


def demand_explicit_control(url: str) -> None:
    """InputError where the server polls its repository, and so takes no such request; ServerError where none is."""
    models(url)
    try:
        load_model(url, _NO_NAME)
    except ServerError as error:
        if "polling is enabled" in str(error):
            raise InputError(
                f"the server at {url} polls its repository, and takes up a version by itself: leave out --reload, or "
                "start it by bin/serve --control explicit"
            ) from None


def models(url: str) -> list[ModelState]:
    """The server's index of its repository."""
    from tritonclient import http

    with _server(url), http.InferenceServerClient(url, network_timeout=_TIMEOUT_SECONDS) as client:
        index = client.get_model_repository_index()
    return [
        ModelState(entry["name"], entry.get("version", ""), entry.get("state", ""), _short(entry.get("reason", "")))
        for entry in index
    ]


@contextmanager
def _server(what: str) -> Iterator[None]:
    """Turns the client's many errors into one."""
    from tritonclient.utils import InferenceServerException

    try:
        yield
    except InferenceServerException as error:
        if error.status() == "StatusCode.UNAVAILABLE":
            raise ServerError(f"no Triton server answers for {what} ({error.message()}): start bin/serve") from None
        raise ServerError(f"the server refused a request for {what}: {_short(error.message())}") from None
    except (OSError, HTTPException) as error:  # the second where the server goes before it has answered
        raise ServerError(f"no Triton server answers for {what} ({error}): start bin/serve") from None
    except (ValueError, KeyError) as error:  # not JSON, or without what Triton says
        raise ServerError(
            f"what answers for {what} is no Triton server ({type(error).__name__}: {error}): name another address, or "
            "start bin/serve"
        ) from None


def _short(reason: str) -> str:
    """Without the lines that say where in a backend's code it was."""
    return " ".join(reason.partition("\n\nAt:\n")[0].split())
