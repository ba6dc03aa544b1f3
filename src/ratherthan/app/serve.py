"""`ratherthan serve`: the page on live questions. One process answers many people; what it finds is kept."""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import ratherthan as rt
from ratherthan.app.images import read_file
from ratherthan.app.options import LOOPBACK
from ratherthan.app.terminal import say
from ratherthan.errors import InputError, RatherThanError, first_line, told_as
from ratherthan.files import write_atomically
from ratherthan.inputs import Text
from ratherthan.render.case import Case
from ratherthan.render.page import render
from ratherthan.result import versions
from ratherthan.words import printable, shorten

LARGEST = 20 * 2**20
"""Bytes of an upload."""
WAITING, WORKERS, KEPT = 32, 2, 200
"""Questions that may wait; that are worked on at once; answered ones that are remembered, and cases on the page."""
_LARGEST_PAGE = 32 * 2**20  # bytes of the cases on it
_LONGEST = 2000  # letters of a text or a name of a class
_OFFERED = 5000  # classes to pick from; of a vocabulary the reader types one
_FLAT = ("text", "table")  # have no layer of places
_MANY_FOILS = ("gradcam", "la", "occlusion", "pda", "lime", "scan")  # a thousand of them cost little more than one
_FIELDS = ("what", "model", "case", "example", "text", "fact", "foil", "method", "name")


class Busy(RatherThanError):
    """Too many questions wait."""


@dataclass
class Job:
    """A question that waits, is worked on, or has been answered.

    Attributes:
        case: The name of the case that it is about.
        asked: What was asked: "what" ("why", "change" or "enough"), "model", "fact", "foil", "method", "name".
        status: "waiting", "working", "done", "failed" or "stopped".
        share: Of the work that is done.
        told: The answer for the page, or the reason why there is none.
    """

    case: str
    asked: Mapping[str, str]
    status: str = "waiting"
    share: float = 0.0
    told: Any = None
    stop: threading.Event = field(default_factory=threading.Event)


class Desk:
    """Takes questions, answers them in their order, and keeps the answers.

    Args:
        models: Networks by name; the first is asked unless another is named.
        folder: Where cases are kept: what was asked about, and the answers.
        examples: Files to pick from, by name.
    """

    def __init__(self, models: Sequence[rt.Model], folder: Path, examples: Mapping[str, Path]) -> None:
        self.models = {model.name: model for model in models}
        self.folder, self.examples = folder, dict(examples)
        self.jobs: dict[str, Job] = {}
        self._lock, self._pool = threading.Lock(), ThreadPoolExecutor(WORKERS)
        folder.mkdir(parents=True, exist_ok=True)

    # ----------------------------------------------------------------------------------------- what is kept
    def cases(self) -> list[dict[str, Any]]:
        """The cases that were answered, the newest first; behind them the results that were saved in the folder."""
        files = sorted(self.folder.glob("*.case.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        bytes_so_far = accumulate(path.stat().st_size for path in files)
        fitting = [path for path, size in zip(files, bytes_so_far, strict=True) if size <= _LARGEST_PAGE]
        answered = (json.loads(path.read_text()) for path in fitting)
        saved = (_saved(path, path.stat().st_mtime) for path in sorted(self.folder.rglob("*.safetensors")))
        return list(islice(chain(answered, chain.from_iterable(saved)), KEPT))

    def _file(self, case: str, ending: str) -> Path:
        return self.folder / f"{case}.{ending}"

    def _kept(self, case: str) -> dict[str, Any] | None:
        path = self._file(case, "case.json")
        return json.loads(path.read_text()) if path.is_file() else None

    # ----------------------------------------------------------------------------------------- questions
    def ask(self, asked: Mapping[str, str], upload: bytes | None = None, ending: str = "") -> str:
        """Take a question; returns the name of the job.

        Args:
            asked: See `Job`; and "case", one that was asked about before, "example", or "text".
            upload: The bytes of a file.
            ending: Of its name.

        Raises:
            InputError: If it cannot be answered.
            Busy: If too many wait.
        """
        with self._lock:
            if sum(job.status == "waiting" for job in self.jobs.values()) >= WAITING:
                raise Busy(f"{WAITING} questions wait already: try again in a moment")
            name = asked.get("model") or next(iter(self.models))
            if name not in self.models:
                raise InputError(f"no model {name!r} here; choose from {', '.join(self.models)}")
            if asked.get("what") not in ("why", "change", "enough"):
                raise InputError("ask what: why, change or enough")
            case = asked.get("case") or self._new_case(asked, self.models[name], upload, ending)
            # a name from outside is only ever compared with those that are known
            if case not in {path.name.split(".")[0] for path in self.folder.glob("*.input.*")}:
                raise InputError("there is no such case here any more: ask about the image again")
            job, number = Job(case, {**asked, "model": name}), secrets.token_hex(8)
            self.jobs[number] = job
            for old in [key for key, each in self.jobs.items() if each.status in ("done", "failed", "stopped")][:-KEPT]:
                del self.jobs[old]
        self._pool.submit(self._work, job)
        return number

    def _new_case(self, asked: Mapping[str, str], model: rt.Model, upload: bytes | None, ending: str) -> str:
        """Keep what is asked about."""
        case = secrets.token_hex(8)
        if isinstance(model.inputs, Text):
            if not asked.get("text", "").strip():
                raise InputError(f"{model.name} takes text: write one")
            upload, ending = asked["text"].strip().encode(), ".txt"
        elif upload is None and asked.get("example") in self.examples:
            path = self.examples[asked["example"]]
            upload, ending = path.read_bytes(), path.suffix
        if not upload:
            raise InputError(f"{model.name} takes {model.inputs.name}: choose a file, or an example")
        path = write_atomically(self._file(case, f"input{ending}"), [upload])
        try:
            self._input(case, model)
        except RatherThanError:
            path.unlink()
            raise
        return case

    def _input(self, case: str, model: rt.Model) -> Any:
        (path,) = self.folder.glob(f"{case}.input.*")
        return path.read_text() if path.suffix == ".txt" else read_file(path, model, "this file")

    # ----------------------------------------------------------------------------------------- answers
    def _work(self, job: Job) -> None:
        model = self.models[job.asked["model"]]
        try:
            if job.stop.is_set():
                raise KeyboardInterrupt
            job.status = "working"
            with _stopping(model, job):
                told = self._answer(job, model)
            with self._lock:  # two answers about one case may come at once
                found = {key: value for key, value in told.items() if value}
                kept = told | (self._kept(job.case) or {}) | found | {"id": job.case, "model": model.name}
                write_atomically(self._file(job.case, "case.json"), [json.dumps(kept).encode()])
            job.told, job.status = kept, "done"
        except KeyboardInterrupt:
            job.told, job.status = "stopped", "stopped"
        except RatherThanError as error:
            job.told, job.status = str(error), "failed"
        except Exception as error:  # whatever a network raises harms no other question
            job.told, job.status = first_line(error), "failed"

    def _answer(self, job: Job, model: rt.Model) -> dict[str, Any]:
        asked, what = job.asked, job.asked["what"]
        fact, foil, method = (asked.get(key) or None for key in ("fact", "foil", "method"))
        kept = self._kept(job.case)
        names = [kept["name"] if kept else printable(shorten(asked.get("name") or "case", 80))]

        def report(done: float, total: int) -> None:
            job.share = done / total

        given: dict[str, Any] = {"names": names, "progress": report} | ({"method": method} if method else {})
        sample = self._input(job.case, model)
        samples = [sample] if isinstance(sample, str) else sample.unsqueeze(0)
        if what == "why":
            given["methods"] = [given.pop("method", None) or ("occlusion" if model.inputs.name in _FLAT else "gradcam")]
            if foil is None and model.output.of_classes:
                foil = "each" if given["methods"][0] in _MANY_FOILS else "top10"
            contrasts = ["weighted", "none"] if model.output.of_classes else [None]
            found = rt.compare(model, samples, fact, foil, contrasts=contrasts, **given)
            (case,) = found[0].beside(found)
        elif what == "change":
            case = self._whole(rt.counterfactual(model, samples, fact, foil, **given))
        else:
            case = self._whole(rt.pertinent_positive(model, samples, fact, **given))
        return case.told()

    @staticmethod
    def _whole(result: rt.Counterfactual | rt.PertinentPositive) -> Case:
        """The case of a search that was not stopped."""
        if result.interrupted:
            raise KeyboardInterrupt
        return result.cases()[0]

    def close(self) -> None:
        """Stop what is worked on, and take nothing more."""
        for job in self.jobs.values():
            job.stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)


@lru_cache(KEPT)
def _saved(path: Path, written: float) -> list[dict[str, Any]]:
    """The cases of a result that `save` wrote, read once for each time it is written; none of another file."""
    for kind in (rt.Explanation, rt.Counterfactual, rt.PertinentPositive):
        with suppress(InputError):
            return [case.told() for case in kind.load(path).cases()]
    return []


@contextmanager
def _stopping(model: rt.Model, job: Job) -> Iterator[None]:
    """While it lasts the network stops, as by Ctrl-C, once the job is to be stopped; for this thread alone."""
    mine = threading.get_ident()

    def look(module: Any, given: Any) -> None:
        if job.stop.is_set() and threading.get_ident() == mine:
            raise KeyboardInterrupt

    with model.module.register_forward_pre_hook(look):
        yield


# --------------------------------------------------------------------------------------------- the web
def run(models: Sequence[rt.Model], folder: Path, host: str, port: int) -> None:
    """Serve until Ctrl-C.

    Raises:
        InputError: If nobody can listen there.
    """
    import uvicorn

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with told_as(InputError, f"cannot listen on {host}:{port}", OSError):
            listening.bind((host, port))
            listening.listen(128)  # who is told the address may come before the server is up
        address = f"http://{host}:{listening.getsockname()[1]}/"
        desk = Desk(models, folder, examples())
        about = [(f"model {model.name}", model.inputs.describe()) for model in models]
        about += [("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))]
        app = application(desk, [host, "localhost", LOOPBACK], about)
        say(f"{'page':8} {address}\n{'cases':8} {folder}\nstop with Ctrl-C")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listening])


def examples() -> dict[str, Path]:
    """Pictures that other packages bring along: the photographs of scikit-image."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    known = {"cat": "chelsea.png", "astronaut": "astronaut.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
    return {name: folder / file for name, file in known.items() if (folder / file).is_file()}


def application(desk: Desk, hosts: Sequence[str], about: Sequence[tuple[str, str]] = ()) -> Starlette:
    """The pages and what they ask.

    Args:
        desk: Who answers.
        hosts: The names under which it may be called: another site must not reach it by a name of its own.
        about: Names and values for the foot of the page.
    """

    def page(request: Request) -> Response:
        known = {
            "models": [_described(model) for model in desk.models.values()],
            "examples": list(desk.examples),
            "methods": rt.methods(),
            "largest": LARGEST,
        }
        title = "Why P, rather than Q?"
        return HTMLResponse("".join(render(desk.cases(), title, "", about, known)))

    async def ask(request: Request) -> Response:
        async with request.form(max_files=1, max_fields=len(_FIELDS), max_part_size=4 * _LONGEST) as form:
            asked = {key: str(form[key])[:_LONGEST] for key in _FIELDS if isinstance(form.get(key), str)}
            file: Any = form.get("file")
            upload = None if file is None or isinstance(file, str) else await file.read()
            ending = "" if upload is None else Path(file.filename or "").suffix.lower()
        ending = ending if ending[1:].isalnum() and len(ending) < 8 else ".bin"
        try:
            return JSONResponse({"job": desk.ask(asked, upload, ending)}, 202)
        except Busy as error:
            return _said(str(error), 503)
        except RatherThanError as error:
            return _said(str(error), 400)

    def job(request: Request) -> Response:
        found = desk.jobs.get(request.path_params["job"])
        if found is None:
            return _said("there is no such question", 404)
        if request.method == "DELETE":
            found.stop.set()
        return JSONResponse({"status": found.status, "share": found.share, "told": found.told})

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        yield
        desk.close()

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _said(error.detail, error.status_code)

    routes = [
        Route("/", page),
        Route("/favicon.ico", lambda request: Response(status_code=204)),
        Route("/ask", ask, methods=["POST"]),
        Route("/jobs/{job}", job, methods=["GET", "DELETE"]),
    ]
    guards = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False), Middleware(Guard)]
    return Starlette(routes=routes, middleware=guards, lifespan=running, exception_handlers={HTTPException: failed})


def _said(line: str, status: int) -> Response:
    return JSONResponse({"error": line}, status)


def _described(model: rt.Model) -> dict[str, Any]:
    classes = model.class_names or ()
    kind = "text" if isinstance(model.inputs, Text) else "file"
    return {
        "name": model.name,
        "kind": kind,
        "classes": list(classes) if len(classes) <= 5000 else [],
        "input": repr(model),
    }


class Guard:
    """What every request goes through: other sites may not ask, no body is larger than an upload, no answer is kept."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin1"): value.decode("latin1") for name, value in scope["headers"]}
        limit, read = LARGEST + 2**16, 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise HTTPException(413, f"more than {LARGEST:,} bytes: send a smaller image")
            return message

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        refused, length = None, headers.get("content-length", "0")
        from_elsewhere = urlsplit(headers.get("origin", "")).netloc not in ("", headers.get("host"))
        if from_elsewhere and scope["method"] not in ("GET", "HEAD"):
            refused = _said("this is another site's request", 403)
        if not length.isdigit() or int(length) > limit:
            refused = _said(f"more than {LARGEST:,} bytes: send a smaller image", 413)
        await (refused or self.app)(scope, bounded, marked)


_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
]
