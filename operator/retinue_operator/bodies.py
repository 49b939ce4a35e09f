"""Bodies of answers from whoever may be wrong or hostile: read as far as a limit."""

import aiohttp


async def read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes | None:
    """The whole body; None, and a closed connection, if it is larger than `limit` bytes."""
    parts: list[bytes] = []
    size = 0
    while part := await response.content.readany():
        size += len(part)
        if size > limit:
            response.close()
            return None
        parts.append(part)
    return b"".join(parts)
