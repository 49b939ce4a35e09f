"""What each engine calls the numbers that canonical signals are made of, and in what unit it counts them.

Names and meanings as read in vLLM 0.33.0, SGLang 0.5.23 and TensorRT-LLM's metrics collector of 2026. The simulated
engine speaks vLLM's. Where an engine counts a token only when its request ends (TensorRT-LLM, some of SGLang's), the
live counter is used if there is one.
"""

from dataclasses import dataclass, replace

from retinue.api.pool import EngineType


@dataclass(frozen=True)
class Series:
    """A metric, and label matchers that choose its children, such as source="local_compute"."""

    name: str
    matchers: str = ""


@dataclass(frozen=True)
class EngineMetrics:
    """The series of one engine: counters of tokens, histograms of seconds (names without suffix), gauges as said."""

    computed_tokens: Series | None
    """Uncached prompt tokens; None = the difference of prompt and cached tokens."""
    cached_tokens: Series
    prompt_tokens: Series
    generated_tokens: Series
    queue_time: Series
    prefill_time: Series
    inter_token_time: Series
    ttft: Series
    """From arrival at the engine to its first token: of a prefill instance that is the end of the prompt."""
    running: Series
    """Gauge. It is there from the start of the engine: it also tells when the engine was scraped last."""
    waiting: tuple[Series, ...]
    """Gauges that add up."""
    kv_use: Series
    """Gauge, 0..1."""
    transfer_time: Series | None = None
    host_hit_tokens: Series | None = None
    """Prompt tokens that came from host memory."""
    host_capacity_bytes: Series | None = None
    host_used_bytes: Series | None = None
    host_eviction_age: Series | None = None


_VLLM = EngineMetrics(
    computed_tokens=Series("vllm:prompt_tokens_by_source_total", 'source="local_compute"'),
    cached_tokens=Series("vllm:prompt_tokens_cached_total"),
    prompt_tokens=Series("vllm:prompt_tokens_total"),
    generated_tokens=Series("vllm:generation_tokens_total"),
    queue_time=Series("vllm:request_queue_time_seconds"),
    prefill_time=Series("vllm:request_prefill_time_seconds"),
    inter_token_time=Series("vllm:inter_token_latency_seconds"),
    ttft=Series("vllm:time_to_first_token_seconds"),
    running=Series("vllm:num_requests_running"),
    waiting=(Series("vllm:num_requests_waiting"),),
    kv_use=Series("vllm:kv_cache_usage_perc"),
    transfer_time=Series("vllm:nixl_xfer_time_seconds"),
    host_hit_tokens=Series("vllm:prompt_tokens_cached_by_source_total", 'source="host"'),
)

# vLLM has no gauges for the fill of its offloading: the simulated engine says it under its own name.
_SIMULATED = replace(
    _VLLM,
    host_capacity_bytes=Series("retinue_sim_host_cache_capacity_bytes"),
    host_used_bytes=Series("retinue_sim_host_cache_used_bytes"),
    host_eviction_age=Series("retinue_sim_host_cache_eviction_age_seconds"),
)

_SGLANG = EngineMetrics(
    computed_tokens=Series("sglang:prefill_effective_tokens_total", 'mode="input"'),
    cached_tokens=Series("sglang:prefill_effective_tokens_total", 'mode=~".*_hit"'),
    prompt_tokens=Series("sglang:prefill_effective_tokens_total"),
    generated_tokens=Series("sglang:realtime_tokens_total", 'mode="decode"'),
    queue_time=Series("sglang:queue_time_seconds"),
    prefill_time=Series("sglang:per_stage_req_latency_seconds", 'stage="prefill_forward"'),
    inter_token_time=Series("sglang:inter_token_latency_seconds"),
    ttft=Series("sglang:time_to_first_token_seconds"),
    running=Series("sglang:num_running_reqs"),
    waiting=(
        Series("sglang:num_queue_reqs"),
        Series("sglang:num_prefill_bootstrap_queue_reqs"),
        Series("sglang:num_decode_prealloc_queue_reqs"),
        Series("sglang:num_decode_transfer_queue_reqs"),
    ),
    kv_use=Series("sglang:token_usage"),
    host_hit_tokens=Series("sglang:prefill_effective_tokens_total", 'mode="host_hit"'),
)

_TENSORRT_LLM = EngineMetrics(
    computed_tokens=None,
    cached_tokens=Series("trtllm_prompt_cached_tokens_total"),
    prompt_tokens=Series("trtllm_prompt_tokens_total"),
    generated_tokens=Series("trtllm_generation_tokens_total"),
    queue_time=Series("trtllm_request_queue_time_seconds"),
    prefill_time=Series("trtllm_request_prefill_time_seconds"),
    # There is no histogram of single gaps: the mean of each request is the nearest.
    inter_token_time=Series("trtllm_time_per_output_token_seconds"),
    ttft=Series("trtllm_time_to_first_token_seconds"),
    running=Series("trtllm_num_requests_running"),
    waiting=(Series("trtllm_num_requests_waiting"),),
    kv_use=Series("trtllm_kv_cache_utilization"),
)

ENGINE_METRICS: dict[EngineType, EngineMetrics] = {
    EngineType.VLLM: _VLLM,
    EngineType.SGLANG: _SGLANG,
    EngineType.TENSORRT_LLM: _TENSORRT_LLM,
    EngineType.SIMULATED: _SIMULATED,
}
