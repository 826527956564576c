"""The HTTP API under `/api/v1`: what the tabs do, for scripts. Off unless enabled; `app.api_access` says who may use it."""

from __future__ import annotations

import asyncio
import json
import logging
import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from app.api_access import API_PATH, TokenGuard
from app.api_stacks import StackAnswers
from app.services.context import Services
from app.services.gallery import GalleryService
from app.services.starting import STARTS, start_job
from trainer import __version__
from trainer.base_models import list_base_models
from trainer.dataset.store import DatasetStore
from trainer.errors import ConfigError, InkwashError, RunError
from trainer.events import Event, EventReader
from trainer.files import is_inside
from trainer.found_recipe import read_any_recipe
from trainer.gallery import PictureInfo
from trainer.library import list_loras
from trainer.picture_texts import SUFFIXES
from trainer.runs import Run, RunState
from trainer.upscalers import list_upscalers

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.3
_KEEP_ALIVE_SECONDS = 15.0
_MAX_LIMIT = 500
_PREVIEW_SUFFIX = ".jpg"
_PICTURE_HEADERS = {"x-content-type-options": "nosniff"}


class JobRequest(BaseModel):
    """A job to be started."""

    model_config = ConfigDict(extra="forbid")

    kind: Annotated[str, Field(max_length=60)]
    """One of `GET /kinds`: "generate", "train", "caption", "tool:merge", …"""
    settings: dict[str, Any] = {}
    """As `GET /kinds/{kind}` describes them; what is left out is the default."""


class Api:
    """The answers; a method a request."""

    def __init__(self, services: Services) -> None:
        self._data = services.data
        self._jobs = services.jobs
        self._gallery = GalleryService(services.data).gallery

    def about(self) -> dict[str, Any]:
        """Which Inkwash answers."""
        return {"name": "Inkwash", "version": __version__, "api": 1}

    def kinds(self) -> list[str]:
        """The kinds of jobs that can be started."""
        return list(STARTS)

    def kind(self, kind: str) -> dict[str, Any]:
        """The settings of a kind of job, as JSON Schema."""
        if kind not in STARTS:
            raise HTTPException(404, f"There is no kind of job '{kind[:40]}'.")
        return STARTS[kind].settings.model_json_schema()

    def models(self) -> list[dict[str, Any]]:
        """The base models; `problem` says why one cannot be used."""
        names = (
            "name",
            "title",
            "family",
            "resolution",
            "default_steps",
            "default_guidance",
            "size_bytes",
            "problem",
            "training_problem",
        )
        return [{name: getattr(model, name) for name in names} for model in list_base_models(self._data)]

    def upscalers(self) -> list[dict[str, Any]]:
        """The upscaling models for the hires fix; a generation takes them by name."""
        return [{"name": entry.name, "size_bytes": entry.size_bytes} for entry in list_upscalers(self._data)]

    def loras(self, search: str = "") -> list[dict[str, Any]]:
        """The library, newest first."""
        names = ("name", "title", "trigger_words", "rank", "base_model", "size_bytes", "modified", "problem")
        return [{name: getattr(entry, name) for name in names} for entry in list_loras(self._data, search[:200])]

    def datasets(self) -> list[dict[str, Any]]:
        """The data sets."""
        names = ("name", "title", "trigger_word", "num_pictures", "description", "license", "problem")
        return [{name: getattr(info, name) for name in names} for info in DatasetStore(self._data).list()]

    def start(self, request: JobRequest) -> dict[str, Any]:
        """Start a job, or put it in the queue."""
        return self.job(start_job(self._data, request.kind, request.settings))

    def jobs(self, kind: str = "", limit: Annotated[int, Query(ge=1, le=_MAX_LIMIT)] = 100) -> list[dict[str, Any]]:
        """The jobs, newest first; of a kind, or all."""
        return [self._job(run_id) for run_id in self._jobs.ids(kind)[:limit]]

    def job(self, job_id: str) -> dict[str, Any]:
        """A job: its state, how far it is, and what came of it."""
        return self._job(job_id)

    def events(self, job_id: str, after: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        """What happened since; `next` is the `after` of the next question."""
        run = self._run(job_id)
        state = run.state()
        reader = EventReader(run.events_path, after)
        events = [event.model_dump(mode="json") for event in reader.read_new()]
        return {"events": events, "next": reader.offset, "state": state.value, "is_over": state.is_over}

    def stream(self, job_id: str, request: Request, after: Annotated[int, Query(ge=0)] = 0) -> StreamingResponse:
        """The same as server-sent events, until the job is over. `Last-Event-ID` goes on where a connection broke."""
        last = request.headers.get("last-event-id", "")
        run = self._run(job_id)
        reader = EventReader(run.events_path, int(last) if last.isdecimal() else after)

        async def lines() -> AsyncIterator[str]:
            silent = 0.0
            while not await request.is_disconnected():
                # The state first: what was written until then is read below, so nothing is lost at the end.
                is_over = (await asyncio.to_thread(run.state)).is_over
                for event, end in await asyncio.to_thread(reader.read_each):
                    silent = 0.0
                    text = json.dumps(event.model_dump(mode="json"))
                    yield f"id: {end}\nevent: {_type(event)}\ndata: {text}\n\n"
                if is_over:
                    yield f"event: over\ndata: {json.dumps({'state': run.state().value})}\n\n"
                    return
                silent += _POLL_SECONDS
                if silent >= _KEEP_ALIVE_SECONDS:
                    silent = 0.0
                    yield ": still there\n\n"
                await asyncio.sleep(_POLL_SECONDS)

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a job after its step, or take it out of the queue."""
        self._run(job_id)
        self._jobs.stop(job_id)
        return self._job(job_id)

    def resume(self, job_id: str) -> dict[str, Any]:
        """Go on with a job that was stopped or interrupted."""
        self._run(job_id)
        self._jobs.resume(job_id)
        return self._job(job_id)

    def job_picture(self, job_id: str, index: int) -> FileResponse:
        """A picture that a job made, by its number from 0."""
        pictures = self._jobs.pictures(self._run(job_id).id)
        if not 0 <= index < len(pictures):
            raise HTTPException(404, "There is no such picture.")
        return self._file(pictures[index])

    def job_preview(self, job_id: str) -> Response:
        """The rough view of the picture that a job makes now, a JPEG; another after the next step."""
        path = self._preview(self._run(job_id).id)
        try:
            # Read at once: the job replaces the file as it goes on.
            content = path.read_bytes() if path else b""
        except OSError:
            content = b""
        if not content:
            raise HTTPException(404, "There is no preview: the job makes no picture now.")
        return Response(content, media_type="image/jpeg", headers={**_PICTURE_HEADERS, "cache-control": "no-store"})

    def pictures(
        self,
        search: str = "",
        page: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=_MAX_LIMIT)] = 50,
    ) -> dict[str, Any]:
        """Everything generated, newest first; `search` as in the Gallery tab."""
        found = self._gallery.pictures(search)
        return {
            "total": len(found),
            "pictures": [_picture(picture) for picture in found[page * limit : (page + 1) * limit]],
        }

    def picture(self, picture_id: str) -> FileResponse:
        """A picture's file."""
        return self._file(self._gallery.path(self._found(picture_id)))

    def delete_picture(self, picture_id: str) -> dict[str, Any]:
        """Move a picture to the trash folder."""
        return {"trash": self._gallery.delete(self._found(picture_id)).id}

    def restore_picture(self, trash_id: str) -> dict[str, Any]:
        """Bring a picture back from the trash folder."""
        trashed = next((entry for entry in self._gallery.trashed() if entry.id == trash_id), None)
        if trashed is None:
            raise HTTPException(404, "There is no such picture in the trash.")
        return _picture(self._gallery.restore(trashed))

    def mark_picture(self, picture_id: str) -> dict[str, Any]:
        """Mark a picture as a favourite: the search `is:favourite` finds it."""
        return self._marked(picture_id, is_favourite=True)

    def unmark_picture(self, picture_id: str) -> dict[str, Any]:
        """Take the mark away."""
        return self._marked(picture_id, is_favourite=False)

    def _marked(self, picture_id: str, *, is_favourite: bool) -> dict[str, Any]:
        picture = self._found(picture_id)
        self._gallery.mark(picture, is_favourite=is_favourite)
        return {"is_favourite": picture.name in self._gallery.favourites()}

    def recipe(self, picture_id: str) -> dict[str, Any]:
        """How a picture was made, as settings for another job."""
        return self._recipe(self._gallery.path(self._found(picture_id)))

    def recipe_of_file(self, file: Annotated[str, Query(min_length=1, max_length=2000)]) -> dict[str, Any]:
        """The same of any picture on this machine, of whatever program."""
        return self._recipe(Path(file).expanduser())

    def _recipe(self, path: Path) -> dict[str, Any]:
        found = read_any_recipe(self._data, path)
        return {"source": found.source, "settings": found.settings, "missing": found.missing, "notes": found.notes}

    def _run(self, job_id: str) -> Run:
        try:
            return self._jobs.run(job_id)
        except RunError as error:
            raise HTTPException(404, "There is no such job.") from error

    def _found(self, picture_id: str) -> PictureInfo:
        try:
            return self._gallery.get(picture_id)
        except ConfigError as error:
            raise HTTPException(404, error.message) from error

    def _file(self, path: Path) -> FileResponse:
        is_ours = any(is_inside(path, root) for root in (self._data.outputs, self._data.runs))
        if not is_ours or path.suffix.lower() not in SUFFIXES or not path.is_file():
            raise HTTPException(404, "There is no such picture.")
        return FileResponse(path, media_type=mimetypes.guess_type(path.name)[0], headers=_PICTURE_HEADERS)

    def _preview(self, run_id: str) -> Path | None:
        """Where a working job has its rough view, if it has one. The event's own path is not trusted beyond its name."""
        history = self._jobs.history(run_id)
        if history.preview is None or self._jobs.row(run_id).state is not RunState.RUNNING:
            return None
        path = history.run.folder / Path(history.preview.path).name
        is_ours = path.suffix == _PREVIEW_SUFFIX and is_inside(path, history.run.folder)
        return path if is_ours and path.is_file() else None

    def _job(self, job_id: str) -> dict[str, Any]:
        run_id = self._run(job_id).id
        row, history = self._jobs.row(run_id), self._jobs.history(run_id)
        names = ("id", "kind", "title", "created", "started", "ended", "result", "is_resumable")
        url = f"{API_PATH}/jobs/{quote(row.id, safe='')}"  # ids have blanks, and letters of every script
        step, stage = history.last_step, history.stage
        return {
            **{name: getattr(row, name) for name in names},
            "url": url,
            "state": row.state.value,
            "is_over": row.state.is_over,
            "stage": stage.model_dump(mode="json") if stage else None,
            "step": step.step if step else 0,
            "total_steps": history.total_steps,
            "loss": step.loss if step else None,
            "warnings": list(history.warnings),
            "error": history.error.to_dict() if history.error else None,
            "lora": Path(history.lora.library_path).stem if history.lora and history.lora.library_path else "",
            "preview": f"{url}/preview" if self._preview(run_id) else "",
            "pictures": [f"{url}/pictures/{at}" for at in range(len(self._jobs.pictures(job_id)))],
        }


def _type(event: Event) -> str:
    return str(getattr(event, "type", "message"))


def _picture(picture: PictureInfo) -> dict[str, Any]:
    names = ("id", "name", "made", "width", "height", "prompt", "negative_prompt", "model", "seed", "loras")
    return {**{name: getattr(picture, name) for name in names}, "url": f"{API_PATH}/pictures/{picture.id}"}


def build_api(services: Services, token: str) -> ASGIApp:
    """The API as an ASGI app that answers nobody without the token."""
    api, stacks = Api(services), StackAnswers(services.data)
    router = APIRouter(prefix=API_PATH)
    for method, path, answer in (
        ("GET", "", api.about),
        ("GET", "/kinds", api.kinds),
        ("GET", "/kinds/{kind}", api.kind),
        ("GET", "/models", api.models),
        ("GET", "/upscalers", api.upscalers),
        ("GET", "/loras", api.loras),
        ("GET", "/datasets", api.datasets),
        ("GET", "/stacks", stacks.all),
        ("POST", "/stacks", stacks.save),
        ("POST", "/stacks/import", stacks.take_in),
        ("GET", "/stacks/{name}", stacks.get),
        ("DELETE", "/stacks/{name}", stacks.delete),
        ("GET", "/stacks/{name}/file", stacks.file),
        ("GET", "/jobs", api.jobs),
        ("POST", "/jobs", api.start),
        ("GET", "/jobs/{job_id}", api.job),
        ("GET", "/jobs/{job_id}/events", api.events),
        ("GET", "/jobs/{job_id}/events/stream", api.stream),
        ("POST", "/jobs/{job_id}/cancel", api.cancel),
        ("POST", "/jobs/{job_id}/resume", api.resume),
        ("GET", "/jobs/{job_id}/pictures/{index}", api.job_picture),
        ("GET", "/jobs/{job_id}/preview", api.job_preview),
        ("GET", "/pictures", api.pictures),
        ("GET", "/pictures/{picture_id}", api.picture),
        ("DELETE", "/pictures/{picture_id}", api.delete_picture),
        ("PUT", "/pictures/{picture_id}/favourite", api.mark_picture),
        ("DELETE", "/pictures/{picture_id}/favourite", api.unmark_picture),
        ("GET", "/pictures/{picture_id}/recipe", api.recipe),
        ("GET", "/recipe", api.recipe_of_file),
        ("POST", "/trash/{trash_id}/restore", api.restore_picture),
    ):
        router.add_api_route(path, answer, methods=[method], response_model=None)
    app = FastAPI(
        title="Inkwash", version=__version__, docs_url=None, redoc_url=None, openapi_url=f"{API_PATH}/openapi.json"
    )
    app.include_router(router)
    app.add_exception_handler(InkwashError, _say)
    app.add_exception_handler(RequestValidationError, _say_invalid)
    app.add_exception_handler(HTTPException, _say_status)
    app.add_exception_handler(Exception, _say_unexpected)
    return TokenGuard(app, token)


def _say(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, InkwashError):
        raise TypeError("only for our own errors") from error
    return JSONResponse({"error": error.to_dict()}, 409 if isinstance(error, RunError) else 422)


def _say_invalid(request: Request, error: Exception) -> JSONResponse:
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    findings = [{"where": ".".join(map(str, fault["loc"])), "message": fault["msg"]} for fault in faults]
    return JSONResponse(
        {"error": {"code": "request", "message": "The request is not valid.", "findings": findings}}, 422
    )


def _say_status(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = str(error.detail) if isinstance(error, HTTPException) else ""
    return JSONResponse({"error": {"code": "request", "message": message, "findings": []}}, status)


def _say_unexpected(request: Request, error: Exception) -> JSONResponse:
    log.error("The API failed on %s", request.url.path, exc_info=error)
    message = "Something went wrong that Inkwash did not expect; the log in the data folder has the details."
    return JSONResponse({"error": {"code": "unexpected", "message": message, "findings": []}}, 500)
