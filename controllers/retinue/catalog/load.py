"""Reads the catalogue's package data, and looks models and presets up by name, with overrides."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import yaml

from retinue.catalog.facts import (
    AttentionFacts,
    AttentionKind,
    DeviceFacts,
    ExpertFacts,
    FactSource,
    Family,
    ModelFacts,
    Preset,
    TopologyLevel,
)

CUSTOM_DEVICE = "custom"
"""The name of a device that no preset describes: all its facts are given."""

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class _UnknownName(LookupError):
    """A name that the catalogue does not have, with the nearest ones that it has."""

    kind = "name"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        self.name = name
        self.nearest = tuple(difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4))
        hint = f"did you mean {', '.join(self.nearest)}?" if self.nearest else f"known: {', '.join(names)}"
        super().__init__(f"unknown {self.kind} {name!r}; {hint}")


class UnknownModel(_UnknownName):
    """The catalogue has no model of this name."""

    kind = "model"


class UnknownPreset(_UnknownName):
    """The catalogue has no preset of this name."""

    kind = "preset"


def model(name: str) -> ModelFacts:
    """Facts of the model `name` (case does not matter).

    Raises:
        UnknownModel: no such model; the message names the nearest.
    """
    found = models().get(name.lower())
    if found is None:
        raise UnknownModel(name, models())
    return found


def preset(name: str) -> Preset:
    """The node class preset `name` (case does not matter).

    Raises:
        UnknownPreset: no such preset; the message names the nearest.
    """
    found = presets().get(name.lower())
    if found is None:
        raise UnknownPreset(name, presets())
    return found


def model_with(name: str, overrides: Mapping[str, Any]) -> ModelFacts:
    """Facts of `name` with some replaced; a model that the catalogue lacks must be described completely.

    Args:
        name: a catalogue name, or a new one.
        overrides: fields in the shape of a models.yaml entry; nested mappings replace field by field.

    Raises:
        UnknownModel: not in the catalogue and `overrides` is empty.
        ValueError: a field is missing or of the wrong kind.
    """
    row = _document("models.yaml").get(name.lower(), {})
    if not row and not overrides:
        raise UnknownModel(name, models())
    merged: dict[str, Any] = {"source": "given explicitly", **row}
    for key, value in overrides.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if nested else value
    try:
        return parse_model(name.lower(), merged)
    except KeyError as error:
        raise ValueError(f"facts of model {name!r} lack {error}") from error


def device_with(name: str, overrides: Mapping[str, Any]) -> DeviceFacts:
    """Device facts of a preset with some replaced; a preset without a device must be described by memory and bandwidth.

    Args:
        name: a preset's name.
        overrides: fields in the shape of NodeClass `spec.device`: memory, memoryBandwidthGBps, teraflops (bf16, fp8,
            fp4), scaleUpGBps, scaleOutGBps, hostGBps.

    Raises:
        UnknownPreset: no such preset.
        ValueError: an unknown field, or neither the preset nor `overrides` give memory and its bandwidth.
    """
    known = {"memory", "memoryBandwidthGBps", "teraflops", "scaleUpGBps", "scaleOutGBps", "hostGBps"}
    if unknown := sorted(set(overrides) - known):
        raise ValueError(f"unknown device facts {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    base = None if name == CUSTOM_DEVICE else preset(name).device
    memory, bandwidth = overrides.get("memory"), _giga(overrides.get("memoryBandwidthGBps"))
    if base is None:
        if memory is None or bandwidth is None:
            raise ValueError(f"preset {name!r} has no device facts: give memory and memoryBandwidthGBps")
        base = DeviceFacts(name, _quantity(str(memory)), bandwidth)
    given = {str(k).upper(): float(v) * 1e12 for k, v in (overrides.get("teraflops") or {}).items() if v is not None}
    return replace(
        base,
        memory_bytes=base.memory_bytes if memory is None else _quantity(str(memory)),
        memory_bytes_per_second=bandwidth or base.memory_bytes_per_second,
        flops=MappingProxyType({**base.flops, **given}),
        scale_up_bytes_per_second=_giga(overrides.get("scaleUpGBps")) or base.scale_up_bytes_per_second,
        scale_out_bytes_per_second=_giga(overrides.get("scaleOutGBps")) or base.scale_out_bytes_per_second,
        host_link_bytes_per_second=_giga(overrides.get("hostGBps")) or base.host_link_bytes_per_second,
    )


@cache
def models() -> Mapping[str, ModelFacts]:
    """All models of the catalogue by name."""
    return MappingProxyType({name: parse_model(name, row) for name, row in _document("models.yaml").items()})


@cache
def presets() -> Mapping[str, Preset]:
    """All presets of the catalogue by name."""
    document = _document("devices.yaml")
    return MappingProxyType({n: _parse_preset(n, row, document["sources"]) for n, row in document["presets"].items()})


def parse_model(name: str, row: Mapping[str, Any]) -> ModelFacts:
    """One entry in the shape of models.yaml -> facts.

    Raises:
        KeyError, ValueError: the entry lacks a field or has one of the wrong kind.
    """
    layers, attention, experts = row["layers"], row["attention"], row.get("experts")
    active = row["params"].get("active")
    return ModelFacts(
        name=name,
        source=str(row["source"]),
        params_total=float(row["params"]["total"]) * 1e9,
        params_active=None if active is None else float(active) * 1e9,
        layers=int(layers["all"]),
        moe_layers=int(layers["moe"]),
        kv_layers=int(layers["kv"]),
        hidden=int(row["hidden"]),
        attention=AttentionFacts(
            kind=AttentionKind(attention["kind"]),
            heads=attention.get("heads"),
            kv_heads=attention.get("kvHeads"),
            head_dim=attention.get("headDim"),
            latent=attention.get("latent"),
            rope=attention.get("rope"),
            sparse_top_k=attention.get("sparseTopK"),
        ),
        kv_elements_per_token=int(row["kvElements"]),
        max_context=int(row["maxContext"]),
        experts=None if experts is None else _parse_experts(experts),
        kv_extra_bytes_per_token=int(row.get("kvExtraBytes", 0)),
        window_elements_per_sequence=int(row.get("windowElements", 0)),
        state_bytes_per_sequence=int(row.get("stateBytes", 0)),
    )


def _parse_experts(row: Mapping[str, Any]) -> ExpertFacts:
    size = row.get("paramsM")
    return ExpertFacts(
        routed=int(row["routed"]),
        top_k=int(row["topK"]),
        shared=int(row["shared"]),
        params=None if size is None else float(size) * 1e6,
    )


def parse_device(name: str, row: Mapping[str, Any]) -> DeviceFacts:
    """Plain values in the units of devices.yaml (memory quantity, GB/s, TFLOPS) -> facts in bytes and FLOP/s."""
    return DeviceFacts(
        name=name,
        memory_bytes=_quantity(str(row["memory"])),
        memory_bytes_per_second=float(row["memoryBandwidth"]) * 1e9,
        flops=MappingProxyType({str(k): float(v) * 1e12 for k, v in row.get("tflops", {}).items()}),
        scale_up_bytes_per_second=_giga(row.get("scaleUp")),
        scale_out_bytes_per_second=_giga(row.get("scaleOut")),
        host_link_bytes_per_second=_giga(row.get("hostLink")),
        domain_devices=row.get("domainDevices"),
    )


def _parse_preset(name: str, row: Mapping[str, Any], sources: Mapping[str, str]) -> Preset:
    facts = {key: cell for key, cell in row.items() if isinstance(cell, Mapping)}
    values = {key: cell["value"] for key, cell in facts.items()}
    host_memory = values.get("hostMemory")
    return Preset(
        name=name,
        family=Family(row["family"]),
        preliminary=bool(row.get("preliminary", False)),
        device=parse_device(name, values) if "memory" in values else None,
        extended_resource=values.get("extendedResource"),
        devices_per_node=values.get("devicesPerNode"),
        node_selector=MappingProxyType(dict(values.get("nodeSelector", {}))),
        topology=tuple(TopologyLevel(t["level"], tuple(t["keys"])) for t in values.get("topology", [])),
        host_memory_bytes=None if host_memory is None else _quantity(str(host_memory)),
        sources=MappingProxyType(
            {key: FactSource(sources[cell["source"]], cell.get("note", "")) for key, cell in facts.items()}
        ),
    )


def _document(file: str) -> dict[str, Any]:
    text = (resources.files("retinue.catalog") / file).read_text(encoding="utf-8")
    loaded = yaml.safe_load(text)
    if not isinstance(loaded, dict):
        raise ValueError(f"{file}: expected a mapping, got {type(loaded).__name__}")
    return loaded


def _giga(value: float | None) -> float | None:
    return None if value is None else float(value) * 1e9


def _quantity(text: str) -> int:
    for suffix, factor in _UNITS.items():
        if text.endswith(suffix):
            return round(float(text[: -len(suffix)]) * factor)
    return round(float(text))
