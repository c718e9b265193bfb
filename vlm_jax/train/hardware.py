"""Cost of a compiled step, and peak throughput of the devices."""

import jax
from jax.stages import Compiled

PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "V100": 125e12,
    "L40S": 362e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
}
"""Dense half-precision FLOP per second of one device, from the vendors' data sheets, by a part of the device's name."""


def peak_flops() -> float | None:
    """Return the half-precision FLOP per second of all devices together; None if it is not known."""
    devices = jax.devices()
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in devices[0].device_kind), None)
    return peak * len(devices) if peak else None


def step_flops(compiled: Compiled) -> float:
    """Return the FLOP of one call over all devices, as the compiler counts them; 0 if it does not."""
    analysis = compiled.cost_analysis() or {}
    if isinstance(analysis, list):
        analysis = analysis[0]
    return max(0.0, float(analysis.get("flops", 0.0))) * jax.device_count()


def peak_memory(compiled: Compiled) -> int:
    """Return the peak memory of one device in bytes: as the allocator measured it, else as the compiler planned it."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    plan = compiled.memory_analysis()
    if plan is None:
        return 0
    return int(
        plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    )
