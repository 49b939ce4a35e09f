"""Device metrics under the names and labels of dcgm-exporter, as functions of what the simulated engines do.

Names and labels: NVIDIA dcgm-exporter 4 (etc/default-counters.csv and its Kubernetes pod labels); FB values are MiB,
energy is mJ. Only GPUs have these; other devices are in retinue_sim_device_healthy and retinue_sim_device_busy_ratio.
The model: a GPU computes while its engine has a running request, which is what GPU_UTIL measures; an engine claims its
memory once, at start; power and temperature rise from idle with the computing share and the KV in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from retinue.catalog.facts import Family
from retinue_emulator.inventory import NodeFacts

from .engineload import Load
from .faults import KubeletFaults
from .holders import Holder
from .nodedevices import PluginDevice

# Board power in watts as the vendors publish it; a preset without a figure shows no power.
_BOARD_WATTS: Mapping[str, float] = {
    "h100": 700,
    "h200": 700,
    "b200": 1000,
    "b300": 1100,
    "gb200": 1200,
    "gb300": 1400,
}
_IDLE_SHARE = 0.12
# vLLM's default of --gpu-memory-utilization.
_CLAIMED_SHARE = 0.9
_IDLE_CELSIUS, _HOT_CELSIUS = 32.0, 74.0
# XID 79, "GPU has fallen off the bus": the usual last word of a device that goes bad.
_XID_FALLEN_OFF = 79

_LABELS = ("gpu", "UUID", "device", "modelName", "Hostname", "container", "namespace", "pod")
_GAUGES: Mapping[str, str] = {
    "DCGM_FI_DEV_GPU_UTIL": "GPU utilization (in %).",
    "DCGM_FI_DEV_MEM_COPY_UTIL": "Memory utilization (in %).",
    "DCGM_FI_DEV_FB_USED": "Framebuffer memory used (in MiB).",
    "DCGM_FI_DEV_FB_FREE": "Framebuffer memory free (in MiB).",
    "DCGM_FI_DEV_POWER_USAGE": "Power draw (in W).",
    "DCGM_FI_DEV_GPU_TEMP": "GPU temperature (in C).",
    "DCGM_FI_DEV_XID_ERRORS": "Value of the last XID error encountered.",
}
_ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"


@dataclass(frozen=True)
class DeviceReading:
    """One device at this moment. `load` is None without an engine; `holder` is None for a free device."""

    device: PluginDevice
    holder: Holder | None
    load: Load | None
    healthy: bool

    @property
    def busy(self) -> float:
        """Share of the time in which the device computes; a broken one does not."""
        return self.load.busy if self.load is not None and self.healthy else 0.0

    def values(self, preset: str) -> dict[str, float]:
        """Value by metric name."""
        kv = self.load.kv if self.load is not None and self.healthy else 0.0
        total = self.device.memory_bytes / 2**20
        used = _CLAIMED_SHARE * total if self.load is not None else 0.0
        effort = self.busy * (0.5 + 0.5 * kv)
        found = {
            "DCGM_FI_DEV_GPU_UTIL": 100 * self.busy,
            "DCGM_FI_DEV_MEM_COPY_UTIL": 100 * self.busy * kv,
            "DCGM_FI_DEV_FB_USED": used,
            "DCGM_FI_DEV_FB_FREE": total - used,
            "DCGM_FI_DEV_GPU_TEMP": _IDLE_CELSIUS + effort * (_HOT_CELSIUS - _IDLE_CELSIUS),
            "DCGM_FI_DEV_XID_ERRORS": 0.0 if self.healthy else float(_XID_FALLEN_OFF),
        }
        if watts := _BOARD_WATTS.get(preset):
            found["DCGM_FI_DEV_POWER_USAGE"] = watts * (_IDLE_SHARE + (1 - _IDLE_SHARE) * effort)
        return found


class DeviceMetrics:
    """A collector for prometheus_client, and the energy that the devices have used since the start."""

    def __init__(self, facts: NodeFacts, devices: Iterable[PluginDevice]) -> None:
        self._facts = facts
        self._devices = tuple(devices)
        self._readings: tuple[DeviceReading, ...] = tuple(
            DeviceReading(device, None, None, True) for device in self._devices
        )
        self._millijoules = dict.fromkeys((device.id for device in self._devices), 0.0)

    def update(
        self,
        holders: Mapping[str, Holder],
        load: Callable[[Holder], Load | None],
        faults: KubeletFaults,
        elapsed_seconds: float,
    ) -> None:
        """Takes a new look; the power of the last one has been drawn for `elapsed_seconds`."""
        for reading in self._readings:
            watts = reading.values(self._facts.preset).get("DCGM_FI_DEV_POWER_USAGE", 0.0)
            self._millijoules[reading.device.id] += 1000 * watts * elapsed_seconds if self._is_gpu(reading) else 0.0
        self._readings = tuple(
            DeviceReading(device, holder, load(holder) if holder is not None else None, faults.healthy(device))
            for device in self._devices
            for holder in [holders.get(device.id)]
        )

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering reads no values."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families (prometheus_client calls this at each scrape)."""
        gpus = [(self._labels(reading), reading) for reading in self._readings if self._is_gpu(reading)]
        for name, text in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=_LABELS)
            for labels, reading in gpus:
                value = reading.values(self._facts.preset).get(name)
                if value is not None:
                    gauge.add_metric(labels, value)
            if gauge.samples:
                yield gauge
        if self._facts.preset in _BOARD_WATTS and gpus:
            # A gauge to prometheus_client, which would add _total to a counter's name; DCGM's has none.
            energy = GaugeMetricFamily(_ENERGY, "Total energy consumption since boot (in mJ).", labels=_LABELS)
            for labels, reading in gpus:
                energy.add_metric(labels, self._millijoules[reading.device.id])
            yield energy
        yield from self._collect_plain()

    def _collect_plain(self) -> Iterator[Metric]:
        names = ["resource", "device", "node"]
        healthy = GaugeMetricFamily("retinue_sim_device_healthy", "1 while the device works.", labels=names)
        busy = GaugeMetricFamily(
            "retinue_sim_device_busy_ratio",
            "Share of the time in which the device computes.",
            labels=[*names, "namespace", "pod", "container"],
        )
        for reading in self._readings:
            labels = [reading.device.resource, reading.device.id, self._facts.name]
            healthy.add_metric(labels, float(reading.healthy))
            if reading.device.accelerator:
                holder = reading.holder or Holder("", "", "")
                busy.add_metric([*labels, holder.namespace, holder.pod, holder.container], reading.busy)
        yield healthy
        yield busy

    def _is_gpu(self, reading: DeviceReading) -> bool:
        return reading.device.accelerator and self._facts.family is Family.GPU

    def _labels(self, reading: DeviceReading) -> list[str]:
        device, holder = reading.device, reading.holder or Holder("", "", "")
        model = self._facts.labels.get("nvidia.com/gpu.product", self._facts.preset).replace("-", " ")
        return [
            str(device.index),
            device.id,
            f"nvidia{device.index}",
            model,
            self._facts.name,
            holder.container,
            holder.namespace,
            holder.pod,
        ]


def plugin_counters(registrations: Mapping[str, int], slice_writes: int) -> Iterator[Metric]:
    """What the plugin itself has done: registrations by resource or driver, and slices written."""
    family = CounterMetricFamily(
        "retinue_kubeletplugin_registrations", "Registrations that a kubelet has taken.", labels=["name"]
    )
    for name, count in registrations.items():
        family.add_metric([name], count)
    yield family
    yield CounterMetricFamily("retinue_kubeletplugin_slice_writes", "ResourceSlices written.", value=slice_writes)
