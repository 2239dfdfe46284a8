"""uvicorn around the page and the endpoint: a deadline for slow clients, an end that answers who waits."""

import asyncio
import socket
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lficam.contract import TrainedClassifier
from lficam.errors import InvalidInputError
from lficam.serving.api import Limits, create_app
from lficam.serving.page import create_page

HEADER_SECONDS = 10.0


class _PatientProtocol(H11Protocol):
    """uvicorn's own, but a request whose headers do not come to an end is closed."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._deadline is None:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def require_free_port(host: str, port: int) -> None:
    """Refuse before anything is loaded.

    Raises:
        InvalidInputError: the port is taken, or the host is not this machine.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInputError(
                f"port: {host}:{port} cannot be used ({error.strerror}); name another --port."
            ) from error


def create_server(model: TrainedClassifier, limits: Limits, examples: list[str]) -> FastAPI:
    """The endpoint under ``/api``, the page at ``/``."""
    app = create_app(model, limits)
    page = create_page(model, app.state.batcher.lock, examples)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        show_error=True,
        max_file_size=limits.bytes,
        enable_monitoring=False,
        ssr_mode=False,
        allowed_paths=[],
    )


def run_server(app: FastAPI, host: str, port: int, seconds: float) -> None:
    """Serve until SIGTERM or Ctrl-C; those in flight are answered first, for as long as a request may take."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=_PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(seconds),
    )
