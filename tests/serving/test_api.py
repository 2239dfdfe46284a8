"""The endpoint: right answers to many at a time, a plain refusal of all else, an end that answers who waits."""

import asyncio
import io
import json
import signal
import socket
import statistics
import time

import httpx
import pytest
from PIL import Image

import lficam
from lficam.cli import main
from lficam.predict import explain_images

from .conftest import Server, picture


def ask(server, **options):
    return httpx.post(f"{server.address}/api/explain", timeout=30, **options)


def expected(served_run, content, class_name=None):
    (found,) = explain_images(lficam.load(served_run), [Image.open(io.BytesIO(content))], class_name)
    return found


def test_it_says_what_explain_says(server, served_run):
    content = picture()
    found, explanation = ask(server, content=content).json(), expected(served_run, content)
    told = explanation.to_dict()
    assert (found["label"], found["map"]) == (told["label"], told["map"])
    assert [one["label"] for one in found["top5"]] == [one["label"] for one in told["top5"]]
    for name in ("probability", "peak", "box", "seen"):
        assert found[name] == pytest.approx(told[name], abs=1e-3), name
    assert found["evidence"] == [pytest.approx(row, abs=1e-3) for row in explanation.evidence[0].tolist()]
    assert found["attention"] == [pytest.approx(row, abs=1e-3) for row in explanation.attention[0].tolist()]
    assert found["doubts"] == explanation.doubts()


def test_a_form_and_a_class_and_no_maps(server, served_run):
    content = picture(1)
    found = ask(server, files={"file": ("a.png", content)}, params={"class": "bee", "maps": "false"}).json()
    assert found["label"] == "bee"
    assert "evidence" not in found
    assert found["probability"] == pytest.approx(expected(served_run, content, "bee").probability, abs=1e-4)


def test_the_model_is_described(server):
    assert httpx.get(f"{server.address}/api/model").json()["class_names"] == ["ant", "bee", "cat"]


async def together(server, contents, clients, **options):
    """The answers to all contents, asked by so many clients at a time, and the seconds of each."""
    waiting, answers, seconds = asyncio.Queue(), [None] * len(contents), [0.0] * len(contents)
    for number in range(len(contents)):
        waiting.put_nowait(number)

    async def client(connection):
        while not waiting.empty():
            number = waiting.get_nowait()
            start = time.perf_counter()
            answers[number] = await connection.post("/api/explain", content=contents[number], **options)
            seconds[number] = time.perf_counter() - start

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.address, timeout=60, limits=limits) as connection:
        await asyncio.gather(*(client(connection) for _ in range(clients)))
    return answers, seconds


def test_many_clients_get_the_right_answers(server, served_run, count, figure):
    clients, each = 16, count(3, 60)
    contents = [picture(number % 20) for number in range(clients * each)]
    answers, _ = asyncio.run(together(server, contents, clients, params={"maps": "false"}))
    model = lficam.load(served_run)
    known = [next(iter(explain_images(model, [Image.open(io.BytesIO(picture(number)))]))) for number in range(20)]
    for number, answer in enumerate(answers):
        assert answer.status_code == 200
        assert answer.json()["label"] == known[number % 20].label
        assert answer.json()["probability"] == pytest.approx(known[number % 20].probability, abs=1e-4)
    figure(f"{clients} clients, {each} uploads each", f"{len(answers)} right answers")


def test_too_many_at_once_are_told_so_and_it_recovers(server, figure):
    answers, _ = asyncio.run(together(server, [picture(side=400)] * 200, 200))
    codes = [answer.status_code for answer in answers]
    assert set(codes) <= {200, 503}
    assert codes.count(200) >= 32
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)
    start = time.perf_counter()
    while ask(server, content=picture()).status_code != 200:
        assert time.perf_counter() - start < 2
    seconds = time.perf_counter() - start
    figure(
        "200 at once, 32 may wait", f"{codes.count(200)} answered, the others 503; normal again after {seconds:.2f} s"
    )


def slow_connection(server, number):
    """A client that has begun a request and does not go on: in its headers, or in its body."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = b"POST /api/explain HTTP/1.1\r\nHost: a\r\n"
    connection.sendall(head if number % 2 else head + b"Content-Length: 1000\r\n\r\nabc")
    return connection


@pytest.mark.torture
def test_slow_clients_do_not_hold_others_up(server, figure):
    contents = [picture(number) for number in range(60)]
    _, quiet = asyncio.run(together(server, contents, 1))
    slow = [slow_connection(server, number) for number in range(100)]
    _, beside = asyncio.run(together(server, contents, 1))
    ratio = statistics.quantiles(beside, n=20)[-1] / statistics.quantiles(quiet, n=20)[-1]
    # Both kinds are closed when their time is over: 10 seconds for headers, --seconds for the whole.
    for connection in slow:
        connection.settimeout(25)
        assert connection.recv(4096)[:12] in (b"", b"HTTP/1.1 408")
        connection.close()
    assert max(beside) < 8  # nobody waits for the slow ones, whose time is over after 10 s; the ratio is in the table
    figure("100 slow clients beside a normal one", f"its 95th percentile is {ratio:.2f} of the quiet one")


def raw(server, *parts):
    """The status line of what is answered to raw bytes; empty where the connection is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            return connection.recv(4096)
        except OSError:
            return b""


def bad_requests(server):
    """A round of requests that deserve no answer; the status of each, 0 where the connection was closed."""
    big = b"x" * 2**20 + b"y"
    head = b"POST /api/explain HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    chunks = b"".join(b"1000\r\n" + b"z" * 4096 + b"\r\n" for _ in range(300))
    yield ask(server, content=big).status_code
    yield ask(server, content=b"not a picture").status_code
    yield ask(server, content=b"").status_code
    yield ask(server, content=picture()[:200]).status_code
    yield ask(server, content=picture(), params={"class": "dog"}).status_code
    yield ask(server, files={"file": ("a.png", b"broken")}).status_code
    yield ask(server, content=b"--x\r\nbroken", headers={"content-type": "multipart/form-data; boundary=x"}).status_code
    yield ask(server, content=b"anything", headers={"content-type": "multipart/form-data"}).status_code
    yield ask(server, data={"file": "words"}, headers={"content-type": "multipart/form-data; boundary=y"}).status_code
    yield httpx.get(f"{server.address}/api/explain").status_code
    for answer in (
        raw(server, head + b"Content-Length: 5000000\r\n\r\nabc"),
        raw(server, head + b"Content-Length: 3\r\n\r\n" + big),
        raw(server, head + b"Content-Length: -1\r\n\r\n"),
        raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n", chunks),
        raw(server, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(server, b"\x00\x01\x02 nonsense\r\n\r\n"),
    ):
        yield int(answer[9:12] or 0) if answer.startswith(b"HTTP/1.1") else 0


def test_bad_requests_are_refused_and_memory_stays(server, count, figure):
    rounds, codes = count(3, 38), []
    for _ in range(2):
        list(bad_requests(server))
    before = server.megabytes()
    for _ in range(rounds):
        codes += bad_requests(server)
    grown = server.megabytes() - before
    assert all(code == 0 or 400 <= code < 500 for code in codes), codes
    assert grown < 20
    assert ask(server, content=picture()).status_code == 200
    figure(f"{len(codes)} bad requests", f"all refused, none with 5xx; memory grew by {grown:.1f} MB")


ESCAPES = [
    prefix + dots * depth + "etc/passwd"
    for prefix in ("/", "/gradio_api/file=", "/gradio_api/file=/", "/static/", "/assets/")
    for dots in ("../", "..%2f", "%2e%2e/", "..\\")
    for depth in (1, 4, 8)
] + ["/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/", "//etc/passwd"]


def test_nothing_outside_is_served(server, served_run, figure):
    secrets = [*ESCAPES, f"/gradio_api/file={served_run / 'config.json'}"]
    for path in secrets:
        answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        assert b"root:" not in answer, path
        assert b"lficam_version" not in answer, path
        assert not answer.startswith(b"HTTP/1.1 5"), path
    figure(f"{len(secrets)} paths that lead outside", "nothing served")


@pytest.mark.torture
def test_asked_to_end_it_answers_those_in_flight(served_run, figure):
    server = Server(served_run)

    async def flying():
        async with httpx.AsyncClient(base_url=server.address, timeout=60) as connection:
            asked = [asyncio.create_task(connection.post("/api/explain", content=picture(side=600))) for _ in range(20)]
            while (await connection.get("/api/health")).json()["waiting"] == 0 and not all(one.done() for one in asked):
                await asyncio.sleep(0)
            server.process.send_signal(signal.SIGTERM)
            return await asyncio.gather(*asked)

    answers = asyncio.run(flying())
    assert [answer.status_code for answer in answers] == [200] * 20
    server.process.wait(30)
    server.end()
    figure("SIGTERM with 20 in flight", "20 answered")


def test_a_taken_port_and_a_missing_run_are_sentences(served_run, server, tmp_path, capsys):
    assert main(["serve", str(served_run), "--port", str(server.port)]) == 2
    assert "cannot be used" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "nothing"), "--port", "0"]) == 2
    assert "train first" in capsys.readouterr().err


def test_errors_are_json(server):
    assert json.loads(ask(server, content=b"x").content)["error"].startswith("picture: not a picture")
