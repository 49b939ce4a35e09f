"""An engine that costs next to nothing: streams tokens at a fixed pace, to measure what stands before it."""

import argparse
import asyncio
import json
import os

from aiohttp import web


def _event(**fields: object) -> bytes:
    return b"data: " + json.dumps({"object": "chat.completion.chunk", **fields}).encode() + b"\n\n"


_TOKEN = _event(choices=[{"index": 0, "delta": {"content": "token "}, "finish_reason": None}])
_LAST = _event(choices=[{"index": 0, "delta": {"content": "end"}, "finish_reason": "stop"}])
_USAGE = {"prompt_tokens": 1000, "completion_tokens": 20, "total_tokens": 1020}


async def answer(request: web.Request) -> web.StreamResponse:
    """`max_tokens` tokens, one each `pace_ms` milliseconds, the first one at once."""
    body = await request.json()
    count, pace = int(body.get("max_tokens", 1)), float(body.get("pace_ms", 0)) / 1000
    if not body.get("stream"):
        message = {"index": 0, "message": {"role": "assistant", "content": "end"}, "finish_reason": "stop"}
        return web.json_response({"object": "chat.completion", "choices": [message], "usage": _USAGE})
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(count):
        await response.write(_LAST if number == count - 1 else _TOKEN)
        if pace:
            await asyncio.sleep(pace)
    if (body.get("stream_options") or {}).get("include_usage"):
        await response.write(_event(choices=[], usage=_USAGE))
    await response.write(b"data: [DONE]\n\n")
    return response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--core", type=int, required=True, help="the one core to run on")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/{kind:.+}", answer)
    web.run_app(app, host="127.0.0.1", port=options.port, access_log=None, print=None)


if __name__ == "__main__":
    main()
