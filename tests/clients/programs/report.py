"""How a client's program says what works: a line of JSON for each check. It runs in the client's environment, not in ferrum's."""

import asyncio
import inspect
import json
import os
import traceback

TINY = os.environ["FERRUM_TINY"]  # base URL, without /v1, of a server with a real model
SCRIPTED = os.environ["FERRUM_SCRIPTED"]  # and of one that says what a larger model would


def check(name):
    """Run the function now; what it raises, or anything but true, is a failure."""

    def run(function):
        try:
            found = asyncio.run(function()) if inspect.iscoroutinefunction(function) else function()
            ok, note = bool(found), "" if found else f"got {found!r}"
        except BaseException as error:
            ok, note = False, f"{type(error).__name__}: {error}"
            if os.environ.get("FERRUM_CLIENTS_TRACE"):
                traceback.print_exc()
        print(json.dumps({"check": name, "ok": ok, "note": " ".join(note.split())[:300]}), flush=True)

    return run
