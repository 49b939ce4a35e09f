"""The simulated engine: its life (cold start, serving, draining, stopping) around the scheduler."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Coroutine
from typing import Any

from retinue.economics.costmodel import StepTimes, kv_bytes_per_token, sequence_bytes, weights_bytes
from retinue_emulator.engine.acquire import KvAcquisition
from retinue_emulator.engine.blockkeys import BlockKeys
from retinue_emulator.engine.clock import Clock
from retinue_emulator.engine.config import BLOCK_TOKENS, EngineConfig
from retinue_emulator.engine.kvmemory import KvMemory, Reservation
from retinue_emulator.engine.kvtransfer import HeldKv
from retinue_emulator.engine.listener import Listener
from retinue_emulator.engine.metrics import EngineGauges, EngineMetrics
from retinue_emulator.engine.prompts import Call, bad_request
from retinue_emulator.engine.request import SimRequest
from retinue_emulator.engine.scheduler import Hooks, Limits, Scheduler
from retinue_emulator.engine.server import engine_app
from retinue_emulator.engine.tiers import Resolver

# Assumptions (no source states them): weights stream from node-local flash or a warm network store at 2 GB/s per
# device, and starting the process, compiling and capturing graphs takes 20 s whatever the model.
LOAD_BYTES_PER_SECOND_PER_DEVICE = 2e9
FIXED_START_SECONDS = 20.0
FLUSH_WALL_SECONDS = 0.04
"""Longest time that tokens of a running segment, except the first, stay unseen by a streaming client."""
_POLL_WALL_SECONDS = 0.02


class SimulatedEngine:
    """One pod of a simulated engine instance, listening on `address`:`port`.

    Rank 0 serves requests; other ranks serve only /health and /metrics.

    Args:
        config: what to be.
        clock: model time, shared by all engines of a process.
        address: IPv4 address to bind.
        port: 0 picks a free one; None takes the config's.
        advertise: address by which decode engines reach this one, when it is not `address`.
        resolve: from a tier's host name to the addresses of its servers; by default the resolver of the machine.
    """

    def __init__(
        self,
        config: EngineConfig,
        clock: Clock,
        address: str = "127.0.0.1",
        port: int | None = None,
        *,
        advertise: str | None = None,
        resolve: Resolver | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.address = address
        self.advertised = advertise or address
        self.engine_id = f"{config.instance}-{uuid.uuid4().hex[:8]}"
        self.ready = asyncio.Event()
        self.draining = False
        self.held = HeldKv(clock, self._release_held, lambda: self.metrics.count("nixl_num_kv_expired_reqs"))
        self._keys = BlockKeys()
        block_bytes = kv_bytes_per_token(config.shape) * BLOCK_TOKENS
        self._block_bytes = block_bytes
        self.memory = KvMemory(config.kv_blocks, int(config.host_cache_bytes // block_bytes), self._hand_down)
        self.metrics = EngineMetrics(config, clock.speed, self._gauges)
        self._kv = KvAcquisition(config, clock, self.metrics, self._kv_arrived, self._kv_failed, resolve)
        replicas = config.shape.replicas
        self.scheduler = Scheduler(
            StepTimes(config.shape),
            self.memory,
            Limits(config.max_num_seqs * replicas, config.max_num_batched_tokens * replicas),
            self.metrics,
            Hooks(self._private_blocks, self._kv.admit, self._finished),
        )
        self._listener = Listener(engine_app(self), address, config.port if port is None else port)
        self._tick: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The bound port."""
        return self._listener.port

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return self.scheduler.in_flight

    @property
    def cold_start_seconds(self) -> float:
        """Model time from start to ready."""
        given = self.config.cold_start_seconds
        if given is not None:
            return given
        bandwidth = LOAD_BYTES_PER_SECOND_PER_DEVICE * self.config.shape.devices
        return FIXED_START_SECONDS + weights_bytes(self.config.shape) / bandwidth

    async def start(self) -> None:
        """Listen at once; `ready` is set, and /health answers 200, when the cold start has passed.

        Raises:
            OSError: the address is taken.
        """
        self.clock.start_watch()
        await self._listener.start()
        self._kv.start()
        self._spawn(self._become_ready(), "cold-start")

    async def drain(self, grace_seconds: float) -> bool:
        """Refuse new requests, let running ones end and held KV be pulled, then stop.

        Args:
            grace_seconds: wall seconds after which everything is cut, as a kubelet does.

        Returns:
            True when nothing was cut.
        """
        self.draining = True
        deadline = asyncio.get_running_loop().time() + grace_seconds
        while self.in_flight or len(self.held):
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(_POLL_WALL_SECONDS)
        clean = not self.in_flight and not len(self.held)
        if clean:
            # The last tokens are computed; let the handlers write them out before the socket goes.
            await asyncio.sleep(_POLL_WALL_SECONDS)
        await self.stop()
        return clean

    async def stop(self) -> None:
        """Cut everything and free the address; calling it again does nothing."""
        self.draining = True
        self.ready.clear()
        self.scheduler.abort_all(self.clock.now())
        self.held.drop_all()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._kv.stop()
        await self._listener.stop()

    def submit(self, call: Call, request_id: str) -> SimRequest:
        """Queue a validated call.

        Raises:
            ApiError: the prompt cannot be named or can never fit the KV cache.
        """
        try:
            ranges = self._keys.ranges(call.prompt.scope, call.prompt.runs)
        except ValueError as error:
            raise bad_request(str(error), "retinue_prompt") from error
        now = self.clock.now()
        request = SimRequest(
            id=request_id,
            scope=call.prompt.scope,
            runs=call.prompt.runs,
            ranges=ranges,
            prompt_tokens=call.prompt.tokens,
            max_tokens=call.max_tokens,
            arrived=now,
            pull=call.pull,
            hold_kv=call.hold_kv,
            streaming=call.stream,
        )
        need = sum(len(keys) for keys in ranges) + self._private_blocks(request)
        if need > self.config.kv_blocks:
            raise bad_request(f"the request needs {need} KV blocks, the engine has {self.config.kv_blocks}", "messages")
        self.scheduler.submit(request, now)
        self._advance()
        return request

    def abort(self, request: SimRequest) -> None:
        """Stop computing for a client that went away."""
        self._kv.cancel(request)
        self.scheduler.abort(request, self.clock.now())
        self._advance()

    async def _become_ready(self) -> None:
        await self.clock.sleep(self.cold_start_seconds)
        self.ready.set()

    def _advance(self) -> None:
        """Carry the scheduler to the present and arrange the next call."""
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        now = self.clock.now()
        due = self.scheduler.advance(now)
        if due is None:
            return
        wait = self.clock.wall(max(0.0, due - now))
        if self.scheduler.streams_progress:
            wait = min(wait, FLUSH_WALL_SECONDS)
            first = self.scheduler.first_token_due
            if first is not None:
                wait = min(wait, self.clock.wall(max(0.0, first - now)))
        self._tick = asyncio.get_running_loop().call_later(wait, self._advance)

    def _private_blocks(self, request: SimRequest) -> int:
        """Blocks for the unhashed end of the prompt, the output, and constant state, in KV-equivalents."""
        hashed = sum(len(keys) for keys in request.ranges)
        tokens = max(0, request.prompt_tokens - hashed * BLOCK_TOKENS) + request.max_tokens
        state = math.ceil(sequence_bytes(self.config.shape) / self._block_bytes)
        return math.ceil(tokens / BLOCK_TOKENS) + state

    def _kv_arrived(self, request: SimRequest) -> None:
        self.scheduler.kv_arrived(request, self.clock.now())
        self._advance()

    def _kv_failed(self, request: SimRequest, message: str) -> None:
        self.scheduler.fail(request, message, self.clock.now())
        self._advance()

    def _hand_down(self, keys: list[int]) -> None:
        if self._kv.has_remote:
            self._kv.hand_down(self._keys.runs(keys))

    def _finished(self, request: SimRequest) -> bool:
        if not request.hold_kv or request.reservation is None:
            return False
        self.held.hold(request.id, request.reservation, request.prompt_tokens)
        return True

    def _release_held(self, reservation: Reservation) -> None:
        now = self.clock.now()
        self.memory.release(reservation, now)
        self.scheduler.memory_released(now)
        self._advance()

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _gauges(self) -> EngineGauges:
        host, watch = self.memory.host, self.clock.watch
        return EngineGauges(
            running=self.scheduler.running,
            waiting_capacity=self.scheduler.waiting,
            waiting_deferred=self.scheduler.fetching,
            kv_usage=self.memory.usage,
            host_used_bytes=len(host) * self._block_bytes,
            host_capacity_bytes=float(self.config.host_cache_bytes),
            host_eviction_age=host.eviction_age,
            clock_lag=watch.lag_seconds,
            clock_behind=watch.behind_total,
        )
