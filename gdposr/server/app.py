"""The HTTP interface: turns requests into orders, puts them in the queue, and answers with the pictures."""

import asyncio
import json
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from gdposr import __version__
from gdposr.console import debugging, one_line, say
from gdposr.server.description import ABOUT, ANSWERS, BODY, POLICY, UPSCALE, page
from gdposr.server.jobs import Job, JobQueue, Stopped
from gdposr.server.limits import Limits
from gdposr.server.metrics import TYPE, Metrics
from gdposr.server.order import Order
from gdposr.server.refusals import GONE, RETRY, Refusal, refusal_of
from gdposr.server.upload import receive_photo
from gdposr.server.work import Answer, PhotoRequest

# `runtime.upscale.upscaler.HOTTEST`, which is not imported here because that loads the inference library.
HOTTEST = 2.0
# Where photos are posted to.
PATH = "/v1/upscale"
# Most characters of the notes in an answer's header.
MOST_NOTES = 2000


class UpscaleQuery(BaseModel):
    """The query of a request. Each parameter has the name and the meaning of an option of `gdposr upscale`."""

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(0, ge=0, le=2**64 - 1, description="which version is drawn: same seed, same bytes")
    samples: int | None = Field(None, ge=1, description="so many versions; from two on the answer is a zip")
    sample: int | None = Field(None, ge=0, le=9999, description="this one version of a seed, as a picture")
    scale: float | None = Field(
        None, gt=0, le=4, allow_inf_nan=False, description="any factor up to 4 (default: the model's own)"
    )
    temperature: float = Field(
        1.0,
        ge=0,
        le=HOTTEST,
        allow_inf_nan=False,
        description="how strongly texture is drawn: 0 none, 2 most",
    )
    format: Literal["png", "jpeg", "webp"] = Field("png", description="of each picture")
    quality: int = Field(95, ge=1, le=100, description="of a JPEG or WebP")
    strip: bool = Field(False, description="no metadata in the pictures; what their colours depend on stays")

    def order(self, limits: Limits, scale: float) -> Order:
        """Refusal if the values do not go together. scale: the model's."""
        if self.samples is not None and self.sample is not None:
            raise Refusal(422, "sample is one version, got samples too: leave one of them out")
        if (self.samples or 1) > limits.max_samples:
            raise Refusal(
                422,
                f"samples: expected at most {limits.max_samples}, got {self.samples}: ask again for others by `sample`",
            )
        factor = scale if self.scale is None else self.scale
        return Order(
            self.seed,
            factor,
            self.samples or 1,
            self.sample,
            self.temperature,
            self.format,
            self.quality,
            self.strip,
        )


class PhotoService:
    """Receives photos, waits for their pictures, and counts. folder: each request gets a folder in it."""

    def __init__(self, queue: JobQueue[PhotoRequest, Answer], limits: Limits, folder: Path) -> None:
        self.queue, self.limits, self.folder = queue, limits, folder
        self.metrics = Metrics(queue)
        self._uploads = 0

    async def answer(self, request: Request, order: Order) -> Response:
        """The pictures of the photo in a request's body. Refusal if there are none."""
        self.queue.admit()  # before the photo is received, so that a client does not send it in vain
        if self._uploads >= self.limits.uploads:
            raise Refusal(
                429,
                f"expected fewer than {self.limits.uploads} photos coming in at once: try again later",
                self.queue.retry_after(),
            )
        photo_request = PhotoRequest(Path(tempfile.mkdtemp(dir=self.folder)), order)
        job: Job[PhotoRequest, Answer] | None = None
        try:
            self._uploads += 1
            try:
                await receive_photo(request, photo_request.source, self.limits)
            finally:
                self._uploads -= 1
            begin = time.monotonic()
            job = Job(photo_request, begin + self.limits.timeout)
            self.queue.submit(job)
            answer = await self._pictures(request, job)
            self.metrics.done(photo_request, answer, time.monotonic() - begin)
            return Pictures(answer, photo_request.folder, self.limits.transfer_timeout)
        except BaseException:
            if job is None or job.future is None:
                _remove(photo_request.folder)
            else:  # at once, or when the worker has finished with it
                job.future.add_done_callback(lambda _: _remove(photo_request.folder))
            raise

    async def _pictures(self, request: Request, job: Job[PhotoRequest, Answer]) -> Answer:
        """Wait for a job until its time is up or the client leaves, and then stop it."""
        assert job.future is not None
        done = asyncio.wrap_future(job.future)
        gone = asyncio.ensure_future(_disconnected(request))
        waited_for: list[asyncio.Future[Any]] = [done, gone]
        try:
            await asyncio.wait(
                waited_for,
                timeout=max(0.0, job.deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if done.cancelled():
                raise Refusal(503, "the server is being stopped: try again later", RETRY)
            if done.done() and not isinstance(done.exception(), Stopped):
                return done.result()
            if gone.done():
                raise Refusal(GONE, "the client has left")
            seconds = f"{self.limits.timeout:g} s"
            if job.stop() or not job.begun:
                raise Refusal(
                    503,
                    f"the photo has waited in the queue for {seconds}: try again later",
                    self.queue.retry_after(),
                )
            raise Refusal(
                504,
                f"expected the pictures within {seconds}, they take longer: send a smaller photo, ask for fewer samples, "
                "or raise --timeout of the server",
            )
        finally:
            gone.cancel()
            job.stop()  # changes nothing if it is done
            done.cancel()


class Pictures(FileResponse):
    """The file of an answer. It is removed with its folder once it is sent, or if the client takes too long."""

    def __init__(self, answer: Answer, folder: Path, timeout: float) -> None:
        notes = {"Gdposr-Notes": in_header(answer.notes)} if answer.notes else {}
        super().__init__(
            answer.path, headers=notes, filename=answer.path.name, content_disposition_type="inline"
        )
        self._folder, self._timeout = folder, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            say("an answer was not taken in time; its connection is closed")  # uvicorn closes it
        finally:
            _remove(self._folder)


def create_app(service: PhotoService, scale: float, facts: dict[str, str]) -> FastAPI:
    """The routes. scale: the model's. facts: what /healthz says of the model."""
    app = FastAPI(
        title="gdposr",
        version=__version__,
        description=ABOUT,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; `page` needs none
        redoc_url=None,
    )

    @app.post(PATH, responses=ANSWERS, openapi_extra=BODY, summary=UPSCALE, response_class=Response)
    async def upscale(request: Request, query: Annotated[UpscaleQuery, Query()]) -> Response:
        try:
            return await service.answer(request, query.order(service.limits, scale))
        except Exception as error:
            refusal = refusal_of(error, service.folder)
            if refusal is None:
                raise
            raise refusal from error

    @app.get("/healthz", summary="Whether photos are taken")
    async def health() -> JSONResponse:
        closed = service.queue.closed
        state = {"status": "stopping" if closed else "ok", "version": __version__, **facts}
        counts = {"waiting": service.queue.waiting, "at_work": service.queue.at_work}
        return JSONResponse(state | counts, 503 if closed else 200)

    @app.get("/metrics", summary="Counts and times for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"Content-Type": TYPE})

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def described() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers={"Content-Security-Policy": POLICY})

    _answer_errors(app)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error is `{"error": sentence}`."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        again = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
        return JSONResponse({"error": refusal.sentence}, refusal.status, headers=again)

    @app.exception_handler(RequestValidationError)
    async def wrong_query(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": "; ".join(map(_sentence, error.errors()))}, 422)

    @app.exception_handler(HTTPException)
    async def no_such_place(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        say(f"fault at {request.url.path}: {one_line(error)}")
        if debugging():
            traceback.print_exception(error)
        return JSONResponse({"error": "a fault of the server; its log tells more"}, 500)


def _sentence(fault: dict[str, Any]) -> str:
    """One error of pydantic, with the name of the parameter and the value that came."""
    name, got = fault["loc"][-1], repr(fault.get("input"))[:80]
    if fault["type"] == "extra_forbidden":
        return f"unknown parameter {repr(name)[:80]}: expected some of {', '.join(UpscaleQuery.model_fields)}"
    return f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}, got {got}"


def in_header(notes: list[str]) -> str:
    """Notes as a JSON list in ASCII. If they are too long for a header, the last ones are left out."""
    while len(text := json.dumps(notes)) > MOST_NOTES:
        notes = notes[:-1]
    return text


async def _disconnected(request: Request) -> None:
    """Waits until the client has left. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
