"""A server as people start it, in a process of its own."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import lficam

SIZE = 32


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """``lficam serve`` and its address."""

    def __init__(self, run, *words):
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        command = [
            sys.executable,
            "-m",
            "lficam",
            "serve",
            str(run),
            "--port",
            str(self.port),
            "--device",
            "cpu",
            *words,
        ]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < deadline, "no server"
            try:
                httpx.get(f"{self.address}/api/health", timeout=5).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.2)

    def megabytes(self):
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def served_run(tmp_path_factory):
    torch.manual_seed(0)
    model = lficam.create_model("cifar_resnet20", num_classes=3).eval()
    model.config.class_names = ["ant", "bee", "cat"]
    model.config.preprocessing = lficam.Preprocessing(SIZE, SIZE)
    return model.save_pretrained(tmp_path_factory.mktemp("served") / "run")


@pytest.fixture(scope="session")
def server(served_run):
    """One for all tests that leave it as it was."""
    started = Server(served_run, "--seconds", "10", "--megabytes", "1")
    yield started
    started.end()


def picture(number=0, side=48):
    """The bytes of a PNG file that differs from number to number."""
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
