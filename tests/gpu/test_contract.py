"""The contract of all devices, on this machine's GPU with the built-in model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ferrum.engine.load import find_device
from ferrum.pack.reader import open_pack
from tests.devices.conftest import Loader
from tests.devices.test_contract import *  # noqa: F403 - the same tests, with the loader below
from tests.gpu.conftest import Compile

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]


@pytest.fixture
def loader(gpu: str, compiled: Compile) -> Iterator[Loader]:
    loader = Loader(gpu, open_pack(compiled(gpu), trust=True), find_device(gpu).load)
    yield loader
    loader.close()
