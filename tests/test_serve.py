"""The server: right answers for everyone at once, one line for what cannot be, nothing finished is lost."""

from __future__ import annotations

import io
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ratherthan as rt
from pages import maps_of, order_of
from test_text import Bag, words_tokenizer

pytest.importorskip("starlette", reason="needs starlette: pip install 'ratherthan[serve]'")
from starlette.testclient import TestClient

from ratherthan.app import serve


def png(seed: int = 0, size: tuple[int, int] = (28, 28)) -> bytes:
    """A stroke."""
    pixels = np.zeros(size, np.uint8)
    pixels[4:24, 10 + seed % 8 : 13 + seed % 8] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def desk(tmp_path: Path) -> serve.Desk:
    text = rt.Model(Bag().eval(), ["a", "b", "c", "d"], inputs=rt.Text(words_tokenizer()), name="words")
    models = [rt.load("zoo:mnist"), rt.load("zoo:fashion_mnist"), text]
    (tmp_path / "seven.png").write_bytes(png())
    return serve.Desk(models, tmp_path / "cases", {"seven": tmp_path / "seven.png"})


@pytest.fixture
def client(desk: serve.Desk) -> Iterator[TestClient]:
    with TestClient(serve.application(desk, ["testserver"])) as client:
        yield client


def ask(client: Any, upload: bytes | None = None, name: str = "own.png", **fields: str) -> Any:
    """What a question brings: the case, or the reason why there is none."""
    files = None if upload is None else {"file": (name, upload)}
    answer = client.post("/ask", data={"what": "why", "name": name, **fields}, files=files)
    if answer.status_code != 202:
        assert list(answer.json()) == ["error"]
        return answer.json()["error"]
    return wait(client, answer.json()["job"])


def wait(client: Any, job: str) -> Any:
    while (told := client.get(f"/jobs/{job}").json())["status"] in ("waiting", "working"):
        time.sleep(0.01)
    return told["told"]


def test_all_foils_come_with_the_first_answer(client: TestClient, tmp_path: Path) -> None:
    told = ask(client, png(), name="stroke.png")
    (tmp_path / "x.png").write_bytes(png())
    why = rt.explain(rt.load("zoo:mnist"), tmp_path / "x.png", foil="each")
    maps = maps_of(told)
    assert told["name"] == "stroke.png"
    assert told["fact"] == why.fact_name(0)
    assert len([1 for contrast, _ in maps if contrast == "weighted"]) == 9
    for q in range(10):
        if why.foil_name(0, q) != told["fact"]:
            expected = why.attribution[0, q].numpy()
            got = maps["weighted", why.foil_name(0, q)]
            np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max() + 1e-9)


def test_fact_foil_method_and_model_are_those_that_were_asked_for(client: TestClient) -> None:
    told = ask(client, png(), fact="3", foil="8", method="ixg")
    assert (told["fact"], list(maps_of(told))) == ("3", [("weighted", "8"), ("none", "")])
    assert ask(client, model="zoo:fashion_mnist", example="seven")["fact"] in rt.load("zoo:fashion_mnist").class_names
    words = ask(client, model="words", text="the dog sat")
    assert words["view"]["tokens"] == ["the", " dog", " sat"]
    assert "no model" in ask(client, png(), model="hf:evil/thing")
    assert "did you mean" in ask(client, png(), foil="sevn") or "class" in ask(client, png(), foil="sevn")


def test_what_would_have_to_change_and_what_is_enough_join_their_case(client: TestClient, desk: serve.Desk) -> None:
    case = ask(client, png())
    about = {"case": case["id"], "foil": "7"}
    jobs = [client.post("/ask", data={"what": what, **about}).json()["job"] for what in ("change", "enough")]
    changed, enough = (wait(client, job) for job in jobs)  # at once, and neither answer is lost
    (told,) = desk.cases()
    assert told == {**changed, **enough, "change": changed["change"], "enough": enough["enough"]}
    assert (told["id"], told["why"]) == (case["id"], case["why"])
    assert "rather than 7?" in told["change"][0]["question"]
    kept = rt.pertinent_positive(rt.load("zoo:mnist"), desk.folder / f"{case['id']}.input.png")
    np.testing.assert_array_equal(order_of(enough["enough"]) > 0, kept.mask[0].numpy() > 0)
    page = client.get("/").text
    assert case["id"] in page
    assert "connect-src 'self'" in page


def test_results_that_were_saved_in_the_folder_are_shown(client: TestClient, desk: serve.Desk) -> None:
    model, images = rt.load("zoo:mnist"), np.zeros((2, 1, 28, 28), np.float32)
    images[:, 0, 4:24, 12:15] = 1
    why = rt.explain(model, torch.from_numpy(images), names=["<one>", "other"])
    why.save(desk.folder / "why.safetensors")
    (desk.folder / "foreign.safetensors").write_bytes(b"nothing")
    told = desk.cases()
    assert [each["name"] for each in told] == ["<one>", "other"]
    np.testing.assert_allclose(maps_of(told[0])["weighted", why.foil_name(0)], why.attribution[0], atol=1e-4)
    assert "<one>" not in client.get("/").text


def test_eight_people_at_once_get_their_own_answers(client: TestClient) -> None:
    alone = [ask(client, png(seed), name=f"{seed}.png") for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: ask(client, png(seed), name=f"{seed}.png"), range(8)))
    for one, other in zip(alone, together, strict=True):
        assert {**one, "id": ""} == {**other, "id": ""}
    assert len({json.dumps(each["why"]) for each in together}) == 8


def hostile() -> Iterator[tuple[str, bytes]]:
    """Sixty files that nobody should send."""
    good, random = png(), np.random.default_rng(0)
    for share in range(1, 21):
        yield f"cut{share}.png", good[: len(good) * share // 21]
    for number in range(20):
        broken = bytearray(good)
        for at in random.integers(8, len(good) - 12, 8):
            broken[at] ^= 0xFF
        yield f"flipped{number}.png", bytes(broken)
    yield "empty.png", b""
    yield "noise.png", random.bytes(5000)
    yield "html.png", b"<html><script>alert(1)</script></html>"
    yield "script.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    yield "run.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n"
    yield "../../../etc/passwd", b"root:x:0:0"
    yield "..\\..\\x.png\x00.exe", b"MZ" * 100
    yield "a" * 5000 + ".png", b"x"
    yield (
        "pickle.npy",
        b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"c",
    )
    yield "pickle.pt", b"\x80\x04cos\nsystem\n(S'false'\ntR."
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x", b"0" * 10_000_000)
    yield "bomb.zip", bomb.getvalue()
    yield "bomb.png", _bomb()
    for kind in ("gif", "tiff", "webp", "bmp"):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(buffer, kind)
        yield f"cut.{kind}", buffer.getvalue()[:20]
    yield "con.png", b"\x89PNG\r\n\x1a\n"
    yield "rtl‮gnp.exe", b"\x00" * 10
    yield "<script>.png", b"GIF89a"
    yield "%2e%2e%2fx.png", b"\xff\xd8\xff"


def _bomb() -> bytes:
    """A picture of 40,000 x 40,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def test_sixty_hostile_uploads_get_a_line_each(client: TestClient, desk: serve.Desk) -> None:
    files, refused = list(hostile()), 0
    assert len(files) == 60
    for name, data in files:
        told = ask(client, data, name=name)
        if isinstance(told, str):
            refused += 1
            assert told
            assert "\n" not in told
            assert "Traceback" not in told
            assert str(desk.folder) not in told, "no path of this machine"
    assert refused >= 40, "a few flipped bytes leave a picture"
    assert {path.parent for path in desk.folder.rglob("*")} == {desk.folder}
    assert len(list(desk.folder.glob("*.input.*"))) == 60 - refused
    assert isinstance(ask(client, png()), dict), "it still answers"


def test_what_other_sites_and_large_bodies_ask_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"data": {"what": "why"}, "files": {"file": ("x.png", png())}}
    assert client.post("/ask", headers={"origin": "http://evil.example"}, **given).status_code == 403
    assert client.post("/ask", headers={"origin": "http://testserver"}, **given).status_code == 202
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    monkeypatch.setattr(serve, "LARGEST", 1000)
    big = {"file": ("x.png", b"0" * 200_000)}
    assert client.post("/ask", data={"what": "why"}, files=big).status_code == 413
    many = client.post(
        "/ask", content=iter([b"0" * 50_000] * 4), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert many.status_code in (400, 413)
    for bad in (
        {"what": "eat"},
        {"what": "why"},
        {"what": "why", "case": "../../etc"},
        {"what": "why", "case": "ab12"},
    ):
        answer = client.post("/ask", data=bad)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert (
        client.post("/ask", data={"what": "why"}, files=[("file", ("a", b"")), ("file", ("b", b""))]).status_code == 400
    )
    assert client.get("/jobs/../../etc/passwd").status_code == 404
    assert client.get("/jobs/nothing").status_code == 404
    assert client.get("/served").status_code == 404
    for header in ("x-content-type-options", "content-security-policy", "cache-control"):
        assert header in client.get("/").headers


def test_a_search_is_stopped_and_leaves_the_network_as_it_was(client: TestClient, desk: serve.Desk) -> None:
    case = ask(client, png())
    module = desk.models["zoo:mnist"].module
    before = len(module._forward_pre_hooks)
    job = client.post("/ask", data={"what": "change", "case": case["id"], "method": "cem"}).json()["job"]
    while client.get(f"/jobs/{job}").json()["status"] == "waiting":
        time.sleep(0.005)
    client.delete(f"/jobs/{job}")
    wait(client, job)
    assert client.get(f"/jobs/{job}").json()["status"] == "stopped"
    assert len(module._forward_pre_hooks) == before
    assert desk.cases()[0] == case, "nothing was added"
    assert isinstance(ask(client, png()), dict)


def test_too_many_questions_are_told_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "WAITING", 2)
    desk = serve.Desk([rt.load("zoo:mnist")], tmp_path, {})
    gate = threading.Event()
    monkeypatch.setattr(desk, "_answer", lambda job, model: gate.wait(20) and {})
    for _ in range(serve.WORKERS):
        desk.ask({"what": "why"}, png(), ".png")
    while sum(job.status == "working" for job in desk.jobs.values()) < serve.WORKERS:
        time.sleep(0.01)
    for _ in range(2):
        desk.ask({"what": "why"}, png(), ".png")
    with pytest.raises(serve.Busy, match="2 questions wait already"):
        desk.ask({"what": "why"}, png(), ".png")
    gate.set()
    desk.close()


def test_a_killed_server_finds_its_finished_cases_again(tmp_path: Path) -> None:
    import httpx

    command = [sys.executable, "-m", "ratherthan", "serve", "--cases", str(tmp_path / "kept"), "--port", "0"]
    seen = list[str]()
    for stop in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            assert server.stderr is not None
            try:
                with httpx.Client(base_url=server.stdout.readline().split()[1], timeout=60) as client:
                    assert all(name in client.get("/").text for name in seen)
                    assert isinstance(ask(client, png(), name=f"case{len(seen)}"), dict)
                    seen.append(f"case{len(seen)}")
                server.send_signal(stop)
                assert server.wait(30) in (-signal.SIGKILL, 0, 130)
                assert "Traceback" not in server.stderr.read()
            finally:
                server.kill()
    assert len(list((tmp_path / "kept").glob("*.case.json"))) == 2


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(rt.InputError, match="cannot listen on"):
            serve.run([rt.load("zoo:mnist")], tmp_path, "127.0.0.1", taken.getsockname()[1])
