"""Ask a Triton server over HTTP and gRPC.

tritonclient is imported late, as it takes 0.3 s, and torch not at all: `bin/serve` lives long and needs neither much
memory nor time to start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from pipeline.errors import InputError, ServerError
from pipeline.triton.model_config import INPUT_NAME as INPUT
from pipeline.triton.model_config import OUTPUT_NAME as OUTPUT

if TYPE_CHECKING:
    from pipeline.specs import Images, Probabilities

_TIMEOUT_SECONDS = 60.0
_NO_NAME = "-"  # no model is released under it


class Classify(Protocol):
    """Images uint8 [N, C, H, W] to probabilities float32 [N, K]; the live version where none is named."""

    def __call__(self, url: str, model: str, images: Images, version: int | None = None) -> Probabilities: ...


class ModelState(NamedTuple):
    name: str
    version: str
    state: str
    reason: str


def classify_http(url: str, model: str, images: Images, version: int | None = None) -> Probabilities:
    """One request over HTTP; ServerError where the server is not there or refuses it."""
    from tritonclient import http

    return _ask(http, lambda: http.InferenceServerClient(url, network_timeout=_TIMEOUT_SECONDS), model, images, version)


def classify_grpc(url: str, model: str, images: Images, version: int | None = None) -> Probabilities:
    """One request over gRPC; ServerError where the server is not there or refuses it."""
    from tritonclient import grpc

    return _ask(grpc, lambda: grpc.InferenceServerClient(url), model, images, version)


def top_labels(url: str, model: str, images: Images, version: int | None = None) -> list[str]:
    """The label that the server gives each image, by Triton's classification extension; as `Classify`."""
    from tritonclient import http

    with _server(url), http.InferenceServerClient(url, network_timeout=_TIMEOUT_SECONDS) as client:
        output = http.InferRequestedOutput(OUTPUT, class_count=1)
        asked = client.infer(model, [_input(http, images)], outputs=[output], model_version=str(version or ""))
        answer = asked.as_numpy(OUTPUT)
    # Each entry is "<value>:<index>:<label>".
    return [entry.decode().split(":", 2)[2] for entry in answer.ravel()]


def load_model(url: str, model: str) -> None:
    """Have a server under explicit control load a model; ServerError gives Triton's reason where it cannot."""
    from tritonclient import http

    with _server(model), http.InferenceServerClient(url, network_timeout=_TIMEOUT_SECONDS) as client:
        client.load_model(model)


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


def _ask(protocol: Any, connect: Callable[[], Any], model: str, images: Images, version: int | None) -> Probabilities:
    with _server(model), connect() as client:
        wanted = [protocol.InferRequestedOutput(OUTPUT)]
        answer = client.infer(model, [_input(protocol, images)], outputs=wanted, model_version=str(version or ""))
        probabilities: Probabilities = answer.as_numpy(OUTPUT)
        return probabilities


def _input(protocol: Any, images: Images) -> Any:
    tensor = protocol.InferInput(INPUT, images.shape, "UINT8")
    tensor.set_data_from_numpy(np.ascontiguousarray(images))
    return tensor


@contextmanager
def _server(what: str) -> Iterator[None]:
    """Turns the client's many errors into one."""
    from tritonclient.utils import InferenceServerException

    try:
        yield
    except InferenceServerException as error:
        raise ServerError(f"the server refused a request for {what}: {_short(error.message())}") from None
    except (OSError, HTTPException) as error:  # the second where the server goes before it has answered
        raise ServerError(f"no Triton server answers for {what} ({error}): start bin/serve") from None


def _short(reason: str) -> str:
    """Without the lines that say where in a backend's code it was."""
    return " ".join(reason.partition("\n\nAt:\n")[0].split())
