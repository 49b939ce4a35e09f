"""One request inside the simulated engine: what it asks for, where it stands, and when things happened to it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from retinue_emulator.engine.kvmemory import Reservation


class Phase(StrEnum):
    """Where a request stands."""

    WAITING = "Waiting"
    FETCHING = "Fetching"
    PREFILL = "Prefill"
    DECODE = "Decode"
    DONE = "Done"


class FinishReason(StrEnum):
    """Why a request ended; OpenAI's names where it has one."""

    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class RemoteKv:
    """Where a prefill engine holds this request's KV (vLLM's NIXL kv_transfer_params)."""

    host: str
    port: int
    request_id: str


@dataclass(slots=True)
class SimRequest:
    """A request's prompt as key ranges, its progress in tokens, and its times in model seconds."""

    id: str
    scope: str
    runs: Sequence[tuple[int, int]]
    ranges: Sequence[range]
    prompt_tokens: int
    max_tokens: int
    arrived: float
    pull: RemoteKv | None = None
    """Set on a decode engine that fetches the KV of the prompt instead of computing it."""
    hold_kv: bool = False
    """Set on a prefill engine that keeps the KV for a decode engine."""
    streaming: bool = False

    phase: Phase = Phase.WAITING
    reservation: Reservation | None = None
    device_tokens: int = 0
    host_tokens: int = 0
    remote_tokens: int = 0
    pulled_tokens: int = 0
    prefill_left: int = 0
    generated: int = 0
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    finished: FinishReason | None = None
    error: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that needed no computing, wherever they came from."""
        return self.device_tokens + self.host_tokens + self.remote_tokens + self.pulled_tokens

    @property
    def context(self) -> int:
        """Tokens whose KV the request holds or is about to compute."""
        return self.prompt_tokens + self.generated
