"""``/v1/batches``: many requests in one file, answered beside those of others."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from sanic import Request
from sanic.response import HTTPResponse

from ferrum.errors import FerrumError
from ferrum.server.batch.jobs import BatchRecord
from ferrum.server.batch.lines import ENDPOINTS
from ferrum.server.dialects.files import batches_of, find_file, listing, no_room
from ferrum.server.errors import ApiError
from ferrum.server.fields import Hint
from ferrum.server.fields import Request as Body
from ferrum.server.guard import owner_of
from ferrum.server.protocol import Short
from ferrum.server.routes.common import answer, read
from ferrum.server.state import state_of
from ferrum.server.wire import BadRequest

MAX_LISTED = 100


class BatchRequest(Body, kw_only=True):
    """``POST /v1/batches``."""

    input_file_id: Short
    endpoint: Short
    completion_window: Literal["24h"] | None = None
    metadata: Annotated[dict[Annotated[str, Meta(max_length=64)], Short], Meta(max_length=16)] | None = None
    output_expires_after: Hint = None

    def check(self) -> None:
        if self.endpoint not in ENDPOINTS:
            raise BadRequest(f"endpoint must be {' or '.join(ENDPOINTS)}", "endpoint")


_decoder = msgspec.json.Decoder(BatchRequest)


async def create(request: Request) -> HTTPResponse:
    batches, state = batches_of(request), state_of(request)
    body = await read(request, _decoder)
    file = await find_file(request, body.input_file_id, "input_file_id")
    state.check_open()
    try:
        record = await state.in_thread(batches.add, body.endpoint, file.id, body.metadata, owner_of(request))
    except FerrumError as error:
        raise no_room(error) from None
    batches.queue(record)
    return answer(record.shown())


async def list_batches(request: Request) -> HTTPResponse:
    batches, owner = batches_of(request), owner_of(request)
    found = await state_of(request).in_thread(lambda: list(batches.store.records(BatchRecord, owner)))
    live = [batches.find(r.id, owner) or r for r in found]
    return listing(request, live, BatchRecord.shown, MAX_LISTED)


async def one_batch(request: Request, name: str) -> HTTPResponse:
    return answer((await _find(request, name)).shown())


async def cancel(request: Request, name: str) -> HTTPResponse:
    record = await _find(request, name)
    await batches_of(request).cancel(record)
    return answer(record.shown())


async def _find(request: Request, name: str) -> BatchRecord:
    batches = batches_of(request)
    record = await state_of(request).in_thread(batches.find, name, owner_of(request))
    if record is None:
        raise ApiError(404, "there is no such batch", param="batch_id", code="batch_not_found")
    return record
