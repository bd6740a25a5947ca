"""Pieces of a message's content in OpenAI's APIs: texts, and what only models that see or hear can take."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from ferrum.server.fields import Hint, Json, Request


class TextPart(Request, kw_only=True, tag_field="type", tag="text"):
    text: str
    cache_control: Hint = None
    annotations: Hint = None


class Unread(Request, kw_only=True, forbid_unknown_fields=False):
    """Base of parts that are refused by name: what a model cannot take is said, not that it is unknown."""

    def __post_init__(self) -> None:
        kind = str(self.__struct_config__.tag)
        raise ValueError(f"{_KINDS.get(kind, kind)} input is not supported by this model, which reads text")


class ImagePart(Unread, kw_only=True, tag_field="type", tag="image_url"):
    image_url: Json = None


class AudioPart(Unread, kw_only=True, tag_field="type", tag="input_audio"):
    input_audio: Json = None


class VideoPart(Unread, kw_only=True, tag_field="type", tag="video_url"):
    video_url: Json = None


class FilePart(Unread, kw_only=True, tag_field="type", tag="file"):
    file: Json = None


_KINDS = {"image_url": "image", "input_image": "image", "input_audio": "audio", "video_url": "video", "input_file": "file"}
Part: TypeAlias = TextPart | ImagePart | AudioPart | VideoPart | FilePart
Content: TypeAlias = str | Annotated[list[Part], Meta(min_length=1, max_length=1024)]
