"""The endpoint for programs: bytes of a picture in, label and maps out as JSON; everything bounded."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from torch import Tensor

from lficam.contract import TrainedClassifier
from lficam.errors import LficamError
from lficam.predict import Explanation
from lficam.serving.batcher import Batcher, BusyError


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        bytes: of a request's body, counted as they come, whatever its header says.
        seconds: from its first byte to its answer.
        waiting: how many requests may wait; more are told 503.
        batch: how many pictures are explained together.
    """

    bytes: int = 10 * 2**20
    seconds: float = 30.0
    waiting: int = 32
    batch: int = 16


def create_app(model: TrainedClassifier, limits: Limits | None = None) -> FastAPI:
    """``POST /api/explain``, ``GET /api/model`` and ``GET /api/health``.

    Args:
        model: trained, in eval mode.
        limits: of a request.
    """
    limits = limits or Limits()
    batcher = Batcher(model, limits.waiting, limits.batch)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        await batcher.stop()
        await running

    app = FastAPI(title="lficam", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.batcher = batcher

    @app.exception_handler(HTTPException)
    async def _refused(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.post("/api/explain")
    async def explain(request: Request) -> JSONResponse:
        try:
            async with asyncio.timeout(limits.seconds):
                content = await _picture(request, limits)
                found = await batcher.ask(content, request.query_params.get("class"))
        except TimeoutError:
            raise HTTPException(408, f"The request took more than {limits.seconds:g} seconds.") from None
        except BusyError as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from None
        except LficamError as error:
            raise HTTPException(400, str(error)) from None
        except ClientDisconnect:
            raise HTTPException(400, "The request ended before its body did.") from None
        return JSONResponse(_answer(found, request.query_params.get("maps", "true") != "false"))

    @app.get("/api/model")
    async def describe() -> dict[str, Any]:
        config = model.config
        facts = {"backbone": config.backbone, "method": config.method, "training": config.training}
        return {**facts, "class_names": config.class_names, "evidence": model.linear_head is not None}

    @app.get("/api/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": batcher.waiting}

    return app


async def _picture(request: Request, limits: Limits) -> bytes:
    """The bytes of the picture: the body, or the first file of a form."""
    body = bytearray()
    too_large = HTTPException(413, f"The request has more than {limits.bytes:,} bytes.")
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limits.bytes:
        raise too_large
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.bytes:
            raise too_large
    if request.headers.get("content-type", "").startswith("multipart/"):
        return await _first_file(request, bytes(body))
    return bytes(body)


async def _first_file(request: Request, body: bytes) -> bytes:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, whole(), max_files=4, max_fields=16).parse()
    except (MultiPartException, KeyError, UnicodeDecodeError) as error:
        raise HTTPException(400, f"The form cannot be read ({error}).") from None
    for _, value in form.multi_items():
        if not isinstance(value, str):
            return await value.read()
    raise HTTPException(400, "The form has no file.")


def _answer(found: Explanation, with_maps: bool) -> dict[str, Any]:
    told = {name: value for name, value in found.to_dict().items() if name != "path"}
    told["doubts"] = found.doubts()
    if with_maps:
        told |= {"evidence": _cells(found.evidence), "attention": _cells(found.attention)}
    return told


def _cells(values: Tensor | None) -> list[list[float]] | None:
    """A map as rows of numbers."""
    return None if values is None else [[round(value, 5) for value in row] for row in values[0].tolist()]
