"""The catalogue: every fact has a source, KV sizes follow from the attention shapes, unknown names name the nearest."""

from __future__ import annotations

import pytest

from retinue.catalog.facts import AttentionKind, Family, MissingFact
from retinue.catalog.load import UnknownModel, UnknownPreset, model, models, preset, presets
from retinue.economics.costmodel import kv_bytes

# Published KV sizes: elements per token, KiB per token in FP16 and FP8, GiB at 128 Ki tokens in FP16 and FP8.
KV_TABLE = [
    ("deepseek-v3", 35_136, 68.6, 34.3, 8.6, 4.3),
    ("deepseek-r1", 35_136, 68.6, 34.3, 8.6, 4.3),
    ("kimi-k2", 35_136, 68.6, 34.3, 8.6, 4.3),
    ("kimi-k2.5", 35_136, 68.6, 34.3, 8.6, 4.3),
    ("glm-4.5", 188_416, 368, 184, 46, 23),
    ("glm-4.6", 188_416, 368, 184, 46, 23),
    ("glm-4.7", 188_416, 368, 184, 46, 23),
    ("glm-5", 44_928, 87.8, 43.9, 11.0, 5.5),
    ("glm-5.2", 44_928, 87.8, 43.9, 11.0, 5.5),
    ("qwen3-coder-480b-a35b", 126_976, 248, 124, 31, 15.5),
    ("qwen3-235b-a22b", 96_256, 188, 94, 23.5, 11.8),
    ("minimax-m2", 126_976, 248, 124, 31, 15.5),
    ("minimax-m2.5", 126_976, 248, 124, 31, 15.5),
    ("minimax-m2.7", 126_976, 248, 124, 31, 15.5),
    ("gpt-oss-120b", 18_432, 36, 18, 4.5, 2.3),
    ("gpt-oss-20b", 12_288, 24, 12, 3, 1.5),
    ("llama-3.3-70b", 163_840, 320, 160, 40, 20),
    ("llama-3.1-70b", 163_840, 320, 160, 40, 20),
    ("nemotron-3-super-120b-a12b", 4_096, 8, 4, 1.0, 0.5),
    ("nemotron-3-ultra-550b-a55b", 6_144, 12, 6, 1.5, 0.75),
    ("qwen3.5-397b-a17b", 15_360, 30, 15, 3.8, 1.9),
    ("kimi-k3", 13_824, 27, 13.5, 3.4, 1.7),
]


@pytest.mark.parametrize(("name", "elements", "fp16", "fp8", "fp16_128k", "fp8_128k"), KV_TABLE)
def test_kv_per_token_is_as_published(
    name: str, elements: int, fp16: float, fp8: float, fp16_128k: float, fp8_128k: float
) -> None:
    facts = model(name)
    assert facts.kv_elements_per_token == elements
    for precision, kib, gib in (("FP16", fp16, fp16_128k), ("FP8", fp8, fp8_128k)):
        size = kv_bytes(facts, precision)
        assert size / 1024 == pytest.approx(kib, abs=0.05)
        assert size * 131_072 / 2**30 == pytest.approx(gib, abs=0.051)


def test_sparse_attention_indexer_adds_its_bytes() -> None:
    assert kv_bytes(model("deepseek-v3.2"), "FP8") / 1024 == pytest.approx(42, abs=0.3)


def test_the_kv_table_covers_every_model() -> None:
    assert {row[0] for row in KV_TABLE} | {"deepseek-v3.2"} == set(models())


@pytest.mark.parametrize("name", sorted(models()))
def test_kv_elements_follow_from_the_attention_shape(name: str) -> None:
    facts = model(name)
    shape = facts.attention
    if shape.latent is not None:
        assert shape.rope is not None
        assert (shape.latent + shape.rope) * facts.kv_layers == facts.kv_elements_per_token
    else:
        assert shape.kv_heads is not None
        assert shape.head_dim is not None
        assert 2 * shape.kv_heads * shape.head_dim * facts.kv_layers == facts.kv_elements_per_token


@pytest.mark.parametrize("name", ["gpt-oss-120b", "gpt-oss-20b"])
def test_windowed_layers_hold_128_tokens_per_sequence(name: str) -> None:
    facts = model(name)
    shape = facts.attention
    assert shape.kind is AttentionKind.SLIDING_WINDOW_GQA
    assert facts.window_elements_per_sequence == 2 * 8 * 64 * (facts.layers - facts.kv_layers) * 128


@pytest.mark.parametrize("name", sorted(models()))
def test_every_model_names_its_source_and_its_parameters_add_up(name: str) -> None:
    facts = model(name)
    assert facts.source
    if facts.params_active is None:
        with pytest.raises(MissingFact, match="not published"):
            facts.dense_params()
        return
    assert 0 < facts.dense_params() <= facts.params_total
    assert facts.params_active < facts.params_total


@pytest.mark.parametrize("name", sorted(presets()))
def test_every_fact_of_a_preset_has_a_source(name: str) -> None:
    found = preset(name)
    assert found.node_selector
    assert found.topology
    assert found.sources
    assert all(source.source for source in found.sources.values())
    if found.family is not Family.CPU:
        assert found.extended_resource
        assert found.devices_per_node
        assert found.device is not None
        assert {"memory", "memoryBandwidth", "tflops", "scaleUp", "devicesPerNode"} <= set(found.sources)


def test_the_presets_are_the_ones_promised() -> None:
    expected = {"h100", "h200", "b200", "b300", "gb200", "gb300", "vr200", "lpx-lp30", "vera-cpu", "x86-cpu"}
    assert set(presets()) == expected


@pytest.mark.parametrize(
    ("name", "gib", "terabytes_per_second", "fp8_tflops", "per_node", "domain"),
    [
        ("h100", 80, 3.35, 1978, 8, 8),
        ("h200", 141, 4.8, 1978, 8, 8),
        ("b200", 180, 7.7, 4500, 8, 8),
        ("b300", 268.6, 7.75, 4500, 8, 8),
        ("gb200", 185.0, 8.0, 5000, 4, 72),
        ("gb300", 277.5, 8.0, 5000, 4, 72),
        ("vr200", 268.2, 22.0, 17500, 4, 72),
    ],
)
def test_gpu_facts(
    name: str, gib: float, terabytes_per_second: float, fp8_tflops: float, per_node: int, domain: int
) -> None:
    found = preset(name)
    assert found.device is not None
    assert found.device.memory_bytes / 2**30 == pytest.approx(gib, abs=0.06)
    assert found.device.memory_bytes_per_second == pytest.approx(terabytes_per_second * 1e12)
    assert found.device.flops["FP8"] == pytest.approx(fp8_tflops * 1e12)
    assert (found.devices_per_node, found.device.domain_devices) == (per_node, domain)


def test_what_vendors_call_preliminary_is_marked_and_placeholders_are_not_vendor_names() -> None:
    assert {name for name, found in presets().items() if found.preliminary} == {"vr200", "lpx-lp30", "vera-cpu"}
    lpx = preset("lpx-lp30")
    assert lpx.extended_resource == "example.com/lpu"
    assert "placeholder" in lpx.sources["extendedResource"].source
    assert not any("nvidia" in key or "groq" in key for key in lpx.node_selector)


def test_unknown_host_memory_is_absent_not_invented() -> None:
    assert preset("h100").host_memory_bytes is None
    assert preset("gb200").host_memory_bytes == 1_870_000_000_000


def test_an_nvlink_rack_lists_its_domain_keys_nearest_first() -> None:
    levels = preset("gb300").topology
    assert [level.level for level in levels] == ["nvlinkDomain", "rack", "block", "zone"]
    assert levels[0].keys[0] == "nvidia.com/gpu.clique"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownModel, match=r"unknown model 'kimi-k25'; did you mean kimi-k2\.5"):
        model("kimi-k25")
    with pytest.raises(UnknownPreset, match="unknown preset 'gb30'; did you mean gb300"):
        preset("gb30")
    with pytest.raises(UnknownPreset, match="known: b200"):
        preset("zzzzzz")


def test_names_ignore_case() -> None:
    assert model("Kimi-K2.5") is model("kimi-k2.5")
