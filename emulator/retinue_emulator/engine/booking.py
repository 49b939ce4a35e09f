"""What a request's first token and its end put into the metrics, as vLLM defines each quantity."""

from __future__ import annotations

from retinue_emulator.engine.metrics import EngineMetrics
from retinue_emulator.engine.request import FinishReason, SimRequest


def book_first_token(metrics: EngineMetrics, request: SimRequest, at: float) -> None:
    """Mark the first token at model time `at`, and count the prompt by where its KV came from.

    Prompt tokens are counted here, at the end of prefill, as vLLM does.
    """
    request.first_token = at
    cached = request.cached_tokens
    metrics.time("time_to_first_token_seconds", at - request.arrived)
    metrics.count("prompt_tokens", request.prompt_tokens)
    metrics.count("prompt_tokens_cached", cached)
    metrics.count_by("prompt_tokens_by_source", "local_compute", request.prompt_tokens - cached)
    metrics.count_by("prompt_tokens_by_source", "local_cache_hit", request.device_tokens)
    metrics.count_by("prompt_tokens_by_source", "external_kv_transfer", cached - request.device_tokens)
    metrics.count_by("prompt_tokens_cached_by_source", "device", request.device_tokens)
    metrics.count_by("prompt_tokens_cached_by_source", "host", request.host_tokens)
    metrics.count_by("prompt_tokens_cached_by_source", "p2p", request.pulled_tokens)
    metrics.count_by("prompt_tokens_cached_by_source", "external_unspecified", request.remote_tokens)
    metrics.computed_tokens(request.prompt_tokens - cached)


def book_finish(metrics: EngineMetrics, request: SimRequest, reason: FinishReason) -> None:
    """Count the end of a request, and its times if it ran to its end (vLLM books queue and prefill here, too)."""
    metrics.count_by("request_success", reason.value)
    first, last, scheduled = request.first_token, request.last_token, request.scheduled
    if reason is not FinishReason.LENGTH or first is None or last is None or scheduled is None:
        return
    metrics.time("e2e_request_latency_seconds", last - request.arrived)
    metrics.time("request_queue_time_seconds", scheduled - request.arrived)
    metrics.time("request_inference_time_seconds", last - scheduled)
    metrics.time("request_prefill_time_seconds", first - scheduled)
    metrics.time("request_decode_time_seconds", last - first)
    if request.generated > 1:
        metrics.time("request_time_per_output_token_seconds", (last - first) / (request.generated - 1))
    metrics.request_tokens(request.prompt_tokens, request.generated)
