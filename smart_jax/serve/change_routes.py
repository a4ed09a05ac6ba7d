"""Routes that change the index, which ask for the token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, UploadFile
from fastapi.security import HTTPBearer
from starlette.datastructures import UploadFile as SentFile  # what FastAPI hands over

from smart_jax.files import parse_json_object
from smart_jax.index import AddReport
from smart_jax.serve.context import ERRORS, Context, refusing
from smart_jax.serve.errors import ErrorAnswer, Refusal
from smart_jax.serve.schemas import DeleteAnswer, DeleteRequest, UploadAnswer
from smart_jax.serve.service import Service

CHANGES = ("/upload", "/delete")  # which the guard lets nobody through to who lacks the token
MOST_FILES = 100  # of an upload
DENIED: dict[int | str, dict[str, Any]] = {status: {"model": ErrorAnswer} for status in (401, 403, 409)}

router = APIRouter(
    tags=["changes"],
    responses=ERRORS | DENIED,
    dependencies=[Depends(HTTPBearer(auto_error=False, description="The token that the server was started with."))],
)


@router.post("/upload")
async def upload(
    service: Context,
    files: Annotated[list[UploadFile], File(description="PDFs, images and texts.")],
    metadata: Annotated[str | None, Form(description="A JSON object: metadata of all items.")] = None,
) -> UploadAnswer:
    """Adds files; one of a name that is there takes the other's place."""
    if len(files) > MOST_FILES:
        raise Refusal(422, f"there are {len(files)} files: upload at most {MOST_FILES} at once")
    with refusing():
        given, remedy = (metadata or "").strip(), 'write a JSON object, such as {"year": 2024}'
        facts = parse_json_object(given, "metadata", remedy=remedy, finite=True) if given else None
        for file in files:
            service.uploads.path(file.filename or "")
    answer = UploadAnswer(added=0, unchanged=0, failed={}, files=[])
    for file in files:
        await service.write(_add, service, file, facts, answer)
    if answer.failed and not answer.files:
        raise Refusal(422, "; ".join(f"{name}: {error}" for name, error in answer.failed.items()))
    return answer


def _add(service: Service, file: SentFile, metadata: dict[str, Any] | None, answer: UploadAnswer) -> None:
    """Adds one file; where nothing of it can be read it is not kept, and the former one of the name is."""
    name = service.uploads.path(file.filename or "").name
    try:
        with service.uploads.placing(name, file.file) as path:
            report = _added(service, path, metadata)
            _note(report, path, name, answer)
            if not report.added + report.unchanged + report.described:
                raise _NothingReadError
    except _NothingReadError:
        return
    answer.files.append(name)


class _NothingReadError(Exception):
    """Nothing of a file could be read."""


def _added(service: Service, path: Path, metadata: dict[str, Any] | None) -> AddReport:
    with refusing():
        return service.index.add([{"file": _short(path), "metadata": metadata}], progress=False)


def _short(path: Path) -> str:
    """Returns a path as people write it, after which its items are named."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _note(report: AddReport, path: Path, name: str, answer: UploadAnswer) -> None:
    answer.added += report.added + report.described
    answer.unchanged += report.unchanged
    for place, error in report.failed.items():
        answer.failed[place.replace(_short(path), name)] = error.replace(str(path), name).replace(_short(path), name)


@router.post("/delete")
async def delete(request: DeleteRequest, service: Context) -> DeleteAnswer:
    """Removes items, and uploaded files that no item is of any more."""
    if not (request.ids or request.where or request.files):
        raise Refusal(422, "name the items by files, by ids, or by a condition that is not empty")
    with refusing():
        await service.read(lambda: next(service.index.items(request.where), None))  # checks the condition
        paths = [str(service.uploads.path(name).resolve()) for name in request.files]
    return await service.write(_delete, service, request, paths)


def _delete(service: Service, request: DeleteRequest, paths: list[str]) -> DeleteAnswer:
    with refusing():
        deleted = service.index.delete(where={"path": paths}) if paths else 0
        if request.ids or request.where:
            deleted += service.index.delete(request.ids or None, where=request.where)
    gone = []
    for path in service.uploads.files():
        if next(service.index.items({"path": str(path.resolve())}), None) is None:
            service.uploads.remove(path)
            gone.append(path.name)
    return DeleteAnswer(deleted=deleted, files=gone)
