"""Arguments of the simulated engine and tier: what they make, and how bad ones are refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from retinue.api.pool import KVPrecision, Precision
from retinue.engines import simulated
from retinue_emulator.engine.cli import engine_main, tier_main
from retinue_emulator.engine.config import ConfigError, EngineRole, TierAddress, engine_parser, parse_engine, parse_tier

BASE = ["--role=prefill", "--model=kimi-k2.5", "--device=gb300", "--precision=NVFP4", "--tensor=4"]


def test_all_arguments_reach_the_config() -> None:
    config = parse_engine(
        [
            *BASE,
            "--served-model-name=coder",
            "--kv-precision=FP8",
            "--context-window=200000",
            "--devices=4",
            "--host-cache-bytes=1000000",
            "--tier=warm=http://10.0.0.1:8000",
            "--tier=warm=http://10.0.0.2:8000/",
            "--tier=cold=http://10.0.0.3:8000",
            "--max-num-seqs=64",
            "--max-num-batched-tokens=8192",
            "--port=9000",
        ],
        {"RETINUE_INSTANCE": "coder-primary-prefill-0", "RETINUE_RANK": "1", "RETINUE_WORLD_SIZE": "2"},
    )
    assert config.role is EngineRole.PREFILL
    assert (config.served_model_name, config.shape.model.name) == ("coder", "kimi-k2.5")
    assert (config.shape.tensor, config.shape.devices, config.context_window) == (4, 4, 200_000)
    assert config.tiers == (
        TierAddress("warm", "http://10.0.0.1:8000"),
        TierAddress("warm", "http://10.0.0.2:8000"),
        TierAddress("cold", "http://10.0.0.3:8000"),
    )
    assert (config.max_num_seqs, config.max_num_batched_tokens, config.port) == (64, 8_192, 9_000)
    assert (config.instance, config.rank, config.world_size) == ("coder-primary-prefill-0", 1, 2)
    assert config.kv_blocks > 200_000 // 64


def test_facts_can_be_overridden_in_the_catalogues_and_the_node_classes_shapes() -> None:
    model = json.dumps({"kvElements": 1_000, "maxContext": 4_096, "params": {"active": 10}})
    device = json.dumps({"memory": "400Gi", "memoryBandwidthGBps": 9000, "teraflops": {"fp4": 20000}, "hostGBps": 450})
    shape = parse_engine([*BASE, f"--model-facts={model}", f"--device-facts={device}"], {}).shape
    assert (shape.model.kv_elements_per_token, shape.model.max_context) == (1_000, 4_096)
    assert (shape.model.params_active, shape.model.params_total) == (10e9, 1_026e9)
    assert shape.device.memory_bytes == 400 * 2**30
    assert shape.device.flops["FP4"] == 20e15
    assert shape.device.flops["FP8"] == 5e15
    assert shape.device.host_link_bytes_per_second == 450e9


def test_a_model_that_the_catalogue_lacks_can_be_described() -> None:
    facts = {
        "params": {"total": 8, "active": 7.5},
        "layers": {"all": 32, "moe": 0, "kv": 32},
        "hidden": 4096,
        "attention": {"kind": "GQA", "heads": 32, "kvHeads": 8, "headDim": 128},
        "kvElements": 65_536,
        "maxContext": 131_072,
    }
    arguments = ["--role=aggregated", "--model=our-8b", "--device=h100"]
    shape = parse_engine([*arguments, f"--model-facts={json.dumps(facts)}"], {}).shape
    assert (shape.model.name, shape.model.params_total) == ("our-8b", 8e9)
    del facts["hidden"]
    with pytest.raises(ConfigError, match="facts of model 'our-8b' lack 'hidden'"):
        parse_engine([*arguments, f"--model-facts={json.dumps(facts)}"], {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=kimi-k25"], "did you mean kimi-k2.5"),
        (["--device=gb30"], "did you mean gb300"),
        (["--device=x86-cpu"], "has no device facts"),
        (["--device=vera-cpu"], "vera-cpu: tflops for NVFP4 is not published"),
        (["--model=kimi-k3", "--tensor=8"], "params.active is not published"),
        (["--precision=FP7"], "unknown precision 'FP7'"),
        (["--role=both"], "invalid choice: 'both'"),
        (["--tensor=0"], "must be at least 1"),
        (["--tensor=1"], "GiB per gb300 on 1 device(s)"),
        (["--devices=6"], "6 devices cannot hold tensor=4"),
        (["--num-gpu-blocks-override=10"], "a context window of 262144 tokens does not fit the KV cache of 640"),
        (["--tier=warm"], "must be NAME=http://host:port"),
        (["--model-facts={"], "is no JSON"),
        (['--device-facts={"sram": 1}'], "unknown device facts sram"),
        (["--no-such-flag=1"], "unrecognized arguments: --no-such-flag=1"),
    ],
)
def test_bad_arguments_are_refused_with_the_reason(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_engine([*BASE, *arguments], {})


def test_the_core_knows_the_same_options() -> None:
    known = {name for action in engine_parser()._actions for name in action.option_strings}
    assert known - {"-h", "--help"} == simulated.ENGINE_OPTIONS


def test_a_rank_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="RETINUE_RANK must be a number, got 'x'"):
        parse_engine(BASE, {"RETINUE_RANK": "x"})


def test_tier_arguments() -> None:
    config = parse_tier(["--capacity-bytes=1000", "--bandwidth-gbps=25", "--bytes-per-token=10"])
    assert (config.capacity_bytes, config.bytes_per_second, config.bytes_per_token) == (1_000, 25e9, 10.0)
    with pytest.raises(ConfigError, match="--bandwidth-gbps must be above 0"):
        parse_tier(["--capacity-bytes=1000", "--bandwidth-gbps=0"])
    with pytest.raises(ConfigError, match="--capacity-bytes"):
        parse_tier([])


def test_the_commands_exit_with_2_and_a_reason_on_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine_main(["--role=prefill"]) == 2
    assert tier_main(["--capacity-bytes=-1"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        ("engine_main", [*BASE, "--cold-start-seconds=0", "--host=127.0.0.1", "--port=0"]),
        ("tier_main", ["--capacity-bytes=1000", "--host=127.0.0.1", "--port=0"]),
    ],
)
def test_a_process_serves_until_sigterm_and_exits_cleanly(entry: str, arguments: list[str]) -> None:
    program = f"import sys; from retinue_emulator.engine.cli import {entry} as m; sys.exit(m(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("listening on 127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("kv_precision", list(KVPrecision))
def test_every_precision_of_the_api_can_be_simulated(precision: Precision, kv_precision: KVPrecision) -> None:
    arguments = ["--role=decode", "--model=gpt-oss-120b", "--device=b200", "--tensor=8"]
    config = parse_engine([*arguments, f"--precision={precision}", f"--kv-precision={kv_precision}"], {})
    assert config.kv_blocks > 0
