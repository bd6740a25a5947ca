"""Forms with files (RFC 7578), of a body that is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser

from ferrum.server.errors import ApiError, invalid

MAX_PARTS = 64
MAX_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Part:
    filename: str
    data: bytes


def read_form(content_type: str, body: bytes) -> Mapping[str, Part]:
    """The parts by name. Raises ApiError for what is no such form."""
    head = Message()
    head["content-type"] = content_type[:512]
    boundary = head.get_boundary()
    if head.get_content_type() != "multipart/form-data" or not boundary:
        raise ApiError(415, "the content type must be multipart/form-data", code="unsupported_content_type")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("ascii", "replace"), MAX_PARTS + 1)
    if len(pieces) > MAX_PARTS + 1 or len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise _malformed()
    return dict(map(_part, pieces[1:-1]))


def _part(piece: bytes) -> tuple[str, Part]:
    headers, found, data = piece.partition(b"\r\n\r\n")
    if not found or len(headers) > MAX_HEADER_BYTES:
        raise _malformed()
    parsed = BytesHeaderParser().parsebytes(headers.lstrip(b" \t").removeprefix(b"\r\n"))
    name = parsed.get_param("name", header="content-disposition")
    filename = parsed.get_filename("")
    if not isinstance(name, str):
        raise _malformed()
    return name, Part(filename.replace("\\", "/").rpartition("/")[2][:256], data)


def _malformed() -> ApiError:
    return invalid("the body is not a well-formed multipart form", None, "invalid_form")
