"""``/v1/files``: inputs and outputs of batches, for a server that was started with a folder for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sanic import Request
from sanic.response import HTTPResponse

from ferrum.errors import FerrumError
from ferrum.server.batch.files import FileRecord
from ferrum.server.batch.jobs import Batches
from ferrum.server.errors import ApiError, invalid
from ferrum.server.guard import owner_of
from ferrum.server.multipart import read_form
from ferrum.server.routes.common import answer
from ferrum.server.state import state_of

MAX_LISTED = 10_000


def batches_of(request: Request) -> Batches:
    """Raises ApiError where the server keeps no files."""
    batches = state_of(request).batches
    if batches is None:
        raise ApiError(400, "this server keeps no files; it needs --batch-dir", param=None, code="unsupported_by_server")
    return batches


async def upload(request: Request) -> HTTPResponse:
    batches, state = batches_of(request), state_of(request)
    form = await state.in_thread(read_form, request.headers.get("content-type", ""), request.body)
    purpose = form["purpose"].data if "purpose" in form else b""
    if purpose != b"batch":
        raise invalid("purpose must be batch", "purpose")
    if "file" not in form:
        raise invalid("file is missing", "file", "missing_required_parameter")
    file, owner = form["file"], owner_of(request)
    try:
        made = await state.in_thread(batches.store.add, file.data, file.filename, "batch", owner)
    except FerrumError as error:
        raise no_room(error) from None
    return answer(made.shown())


def no_room(error: FerrumError) -> ApiError:
    if error.code == "files-full":
        return ApiError(413, error.what, code="files_full")
    return ApiError(503, "the server could not write the file", code="write_failed")


async def list_files(request: Request) -> HTTPResponse:
    batches, owner = batches_of(request), owner_of(request)
    found = await state_of(request).in_thread(lambda: list(batches.store.files(owner)))
    purpose = request.args.get("purpose")
    return listing(request, [f for f in found if purpose in (None, f.purpose)], FileRecord.shown, MAX_LISTED)


def listing(request: Request, records: Sequence[Any], shown: Callable[[Any], dict[str, object]], most: int) -> HTTPResponse:
    """A page of ``records``, the newest first, after the one that the request names."""
    records = sorted(records, key=lambda r: (r.created_at, r.id), reverse=request.args.get("order", "desc") != "asc")
    after, limit = request.args.get("after"), request.args.get("limit") or "20"
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= most:
        raise invalid(f"limit must be a number from 1 to {most}", "limit")
    if after:
        place = next((i for i, r in enumerate(records) if r.id == after), None)
        if place is None:
            raise invalid("after names nothing that there is", "after")
        records = records[place + 1 :]
    page = records[: int(limit)]
    ends = {"first_id": page[0].id if page else None, "last_id": page[-1].id if page else None}
    return answer({"object": "list", "data": [shown(r) for r in page], **ends, "has_more": len(records) > len(page)})


async def one_file(request: Request, name: str) -> HTTPResponse:
    return answer((await find_file(request, name)).shown())


async def find_file(request: Request, name: str, param: str = "file_id") -> FileRecord:
    """Raises ApiError for a name that is not one of this client's files."""
    store = batches_of(request).store
    record = await state_of(request).in_thread(store.find, name, FileRecord, owner_of(request))
    if record is None or not name.startswith("file-"):
        raise ApiError(404, "there is no such file", param=param, code="file_not_found")
    return record


async def content(request: Request, name: str) -> HTTPResponse:
    record = await find_file(request, name)
    data = await state_of(request).in_thread(batches_of(request).store.path(record.id).read_bytes)
    return HTTPResponse(data, content_type="application/octet-stream")


async def drop(request: Request, name: str) -> HTTPResponse:
    record, batches = await find_file(request, name), batches_of(request)
    if batches.reads(record.id):
        raise ApiError(409, "a batch that runs reads this file", param="file_id", code="file_in_use")
    await state_of(request).in_thread(batches.store.remove, record.id)
    return answer({"id": record.id, "object": "file", "deleted": True})
