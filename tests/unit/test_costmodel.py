"""The cost model reproduces the calibration it comes from, and behaves as hardware must."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.catalog.facts import MissingFact
from retinue.catalog.load import model, preset
from retinue.economics.costmodel import (
    DoesNotFit,
    EngineShape,
    decode_step_seconds,
    kv_bytes_per_token,
    kv_capacity_tokens,
    prefill_seconds,
    restore_seconds,
    transfer_seconds,
    weights_bytes,
)
from retinue.economics.price import NodeShare, cost_per_hour, input_cost_ratio

ISL, OSL = 8192, 1024

# Published serving points with the calibrated model's own prediction:
# row, model, precision, KV precision, device, tensor parallel, concurrency, predicted and measured TPOT in ms.
ROWS = [
    (1, "gpt-oss-120b", "MXFP4", "BF16", "h100", 2, 4, 6.1, 5.60),
    (2, "gpt-oss-120b", "MXFP4", "BF16", "h100", 2, 16, 11.1, 10.78),
    (3, "gpt-oss-120b", "MXFP4", "BF16", "h100", 2, 64, 23.1, 26.32),
    (4, "gpt-oss-120b", "MXFP4", "BF16", "h200", 1, 16, 12.7, 15.75),
    (5, "gpt-oss-120b", "MXFP4", "BF16", "b200", 1, 64, 17.2, 14.24),
    (6, "gpt-oss-120b", "MXFP4", "BF16", "b200", 1, 128, 23.9, 21.37),
    (7, "minimax-m2.5", "FP8", "BF16", "b300", 4, 16, 11.0, 11.86),
    (8, "minimax-m2.5", "FP8", "BF16", "b300", 4, 64, 22.5, 22.73),
    (9, "minimax-m2.5", "FP8", "BF16", "b300", 4, 256, 51.1, 54.70),
    (10, "minimax-m2.5", "FP8", "BF16", "h200", 4, 64, 34.9, 44.78),
    (11, "kimi-k2.5", "NVFP4", "BF16", "b200", 4, 4, 7.8, 8.82),
    (12, "kimi-k2.5", "NVFP4", "BF16", "b200", 4, 64, 35.7, 33.12),
    (13, "deepseek-r1", "FP8", "FP8", "h200", 8, 4, 8.9, 11.27),
    (14, "deepseek-r1", "FP8", "FP8", "h200", 8, 16, 18.6, 20.41),
    (15, "deepseek-r1", "FP8", "FP8", "h200", 8, 64, 42.5, 50.24),
    (16, "llama-3.3-70b", "FP8", "FP8", "h100", 8, 16, 14.1, 15.85),
    (17, "llama-3.3-70b", "NVFP4", "FP8", "b200", 2, 64, 29.3, 29.64),
]


def shape_of(name: str, precision: str, kv: str, device: str, tensor: int, **layout: int) -> EngineShape:
    facts = preset(device).device
    assert facts is not None
    return EngineShape(model(name), precision, kv, facts, tensor=tensor, **layout)


def aggregated_tpot_ms(shape: EngineShape, concurrency: int) -> float:
    step = decode_step_seconds(shape, concurrency, ISL + OSL / 2)
    return 1e3 * (step + (concurrency - 1) * prefill_seconds(shape, ISL, 0) / OSL)


@pytest.mark.parametrize(
    ("row", "name", "precision", "kv", "device", "tensor", "concurrency", "predicted", "measured"), ROWS
)
def test_it_reproduces_the_calibrated_prediction_of_published_points(
    row: int,
    name: str,
    precision: str,
    kv: str,
    device: str,
    tensor: int,
    concurrency: int,
    predicted: float,
    measured: float,
) -> None:
    ours = aggregated_tpot_ms(shape_of(name, precision, kv, device, tensor), concurrency)
    assert ours == pytest.approx(predicted, rel=0.10), f"row {row}"
    assert ours == pytest.approx(measured, rel=0.35), f"row {row}"


def test_its_median_error_over_the_measured_points_is_within_the_stated_band() -> None:
    errors = [
        abs(aggregated_tpot_ms(shape_of(name, precision, kv, device, tensor), concurrency) / measured - 1)
        for _, name, precision, kv, device, tensor, concurrency, _, measured in ROWS
    ]
    print(f"median absolute TPOT error over {len(errors)} published points: {statistics.median(errors):.1%}")
    assert statistics.median(errors) < 0.15


def test_weights_of_native_checkpoints_have_their_published_size() -> None:
    assert weights_bytes(shape_of("deepseek-v3", "FP8", "FP8", "h200", 8)) == pytest.approx(671e9, rel=0.01)
    assert weights_bytes(shape_of("gpt-oss-120b", "MXFP4", "BF16", "h100", 1)) == pytest.approx(65e9, rel=0.05)


def test_kv_capacity_is_what_weights_and_reserve_leave() -> None:
    shape = shape_of("llama-3.3-70b", "FP8", "FP8", "h100", 4)
    left = 80 * 2**30 - 70.6e9 / 4 - 2**30
    assert kv_capacity_tokens(shape, reserve=2**30) == int(left / (163_840 / 4))


def test_mla_latents_are_replicated_under_tensor_parallelism_and_divided_by_data_parallelism() -> None:
    tensor = shape_of("deepseek-v3", "FP8", "FP8", "h200", 8)
    data = shape_of("deepseek-v3", "FP8", "FP8", "h200", 1, data=8, expert=8)
    assert tensor.kv_shards == 1
    assert kv_capacity_tokens(data) > 3 * kv_capacity_tokens(tensor)


def test_gqa_divides_by_at_most_its_kv_heads() -> None:
    assert shape_of("qwen3-235b-a22b", "FP8", "FP8", "h200", 8).kv_shards == 4


def test_a_model_that_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(
        DoesNotFit, match=r"needs 624\.\d GiB per h100 on 1 device\(s\), 76\.1 GiB are usable"
    ) as refused:
        kv_capacity_tokens(shape_of("deepseek-v3", "FP8", "FP8", "h100", 1))
    assert refused.value.need_bytes > refused.value.have_bytes


def test_a_layout_that_the_devices_do_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="6 devices cannot hold tensor=4"):
        shape_of("llama-3.3-70b", "FP8", "FP8", "h100", 4, devices=6)
    with pytest.raises(ValueError, match="unknown precision 'FP7'; known: BF16"):
        shape_of("llama-3.3-70b", "FP7", "FP8", "h100", 4)
    with pytest.raises(ValueError, match="unknown KV precision"):
        shape_of("llama-3.3-70b", "FP8", "FP7", "h100", 4)


def test_a_missing_fact_is_named() -> None:
    with pytest.raises(MissingFact, match=r"kimi-k3: params\.active is not published"):
        prefill_seconds(shape_of("kimi-k3", "MXFP4", "FP8", "b300", 8), 1000, 0)


def test_cached_tokens_cost_attention_but_no_weights_compute() -> None:
    shape = shape_of("kimi-k2.5", "NVFP4", "FP8", "gb300", 4)
    cold = prefill_seconds(shape, 100_000, 0)
    warm = prefill_seconds(shape, 5_000, 95_000)
    alone = prefill_seconds(shape, 5_000, 0)
    assert alone < warm < cold / 5


@given(new=st.integers(1, 200_000), cached=st.integers(0, 200_000), more=st.integers(1, 50_000))
def test_more_prompt_never_prefills_faster(new: int, cached: int, more: int) -> None:
    shape = shape_of("gpt-oss-120b", "MXFP4", "BF16", "h200", 2)
    assert prefill_seconds(shape, new + more, cached) >= prefill_seconds(shape, new, cached)
    assert prefill_seconds(shape, new, cached + more) >= prefill_seconds(shape, new, cached)


@given(batch=st.integers(1, 256), context=st.integers(1, 200_000))
def test_a_bigger_batch_is_slower_per_step_and_faster_per_token(batch: int, context: int) -> None:
    shape = shape_of("minimax-m2.5", "FP8", "FP8", "b300", 4)
    one, two = decode_step_seconds(shape, batch, context), decode_step_seconds(shape, 2 * batch, context)
    assert one <= two <= 2 * one


def test_sparse_attention_stops_growing_with_context() -> None:
    sparse = shape_of("deepseek-v3.2", "FP8", "FP8", "b200", 8)
    assert decode_step_seconds(sparse, 8, 100_000) == decode_step_seconds(sparse, 8, 10_000)


def test_no_work_takes_no_time() -> None:
    shape = shape_of("gpt-oss-120b", "MXFP4", "BF16", "h200", 2)
    assert prefill_seconds(shape, 0, 5_000) == 0
    assert decode_step_seconds(shape, 0, 5_000) == 0
    assert transfer_seconds(0, 50e9) == 0
    assert restore_seconds(0, 50e9, 0.1) == 0


def test_restoring_an_85k_prefix_takes_the_published_time() -> None:
    kv = kv_bytes_per_token(shape_of("deepseek-v3", "FP8", "FP8", "h200", 8)) * 85_000
    assert restore_seconds(kv, 25e9) == pytest.approx(0.12, abs=0.005)
    assert restore_seconds(kv, 50e9) == pytest.approx(0.06, abs=0.003)
    assert transfer_seconds(kv, 50e9, links=8, efficiency=1.0, setup_seconds=0.001) == pytest.approx(kv / 400e9 + 0.001)


@pytest.mark.parametrize(
    ("hit", "premium", "discount", "ratio"),
    [(0.95, 1.0, 0.9, 0.145), (0.0, 1.0, 0.9, 1.0), (1.0, 1.25, 0.9, 0.1), (0.905, 1.0, 0.9, 0.1855)],
)
def test_input_cost_ratio(hit: float, premium: float, discount: float, ratio: float) -> None:
    assert input_cost_ratio(hit, premium, discount) == pytest.approx(ratio)


def test_input_cost_ratio_refuses_what_is_no_ratio() -> None:
    for arguments in ((1.1, 1.0, 0.9), (-0.1, 1.0, 0.9), (0.5, -1.0, 0.9), (0.5, 1.0, 1.5)):
        with pytest.raises(ValueError):
            input_cost_ratio(*arguments)


def test_a_pod_costs_its_share_of_the_node_by_devices() -> None:
    shares = [NodeShare(24.0, 2, 4), NodeShare(24.0, 4, 4), NodeShare(3.0, 0, 0)]
    assert cost_per_hour(shares) == pytest.approx(12 + 24 + 3)
