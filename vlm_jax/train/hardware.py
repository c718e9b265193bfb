"""What a compiled step costs, and what the device could do."""

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
"""Dense half-precision FLOP a second of one device, from the makers' data sheets, by part of the device's name."""


def peak_flops() -> float | None:
    """FLOP a second of all devices together at half precision, None where it is not known."""
    devices = jax.devices()
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in devices[0].device_kind), None)
    return peak * len(devices) if peak else None


def step_flops(compiled: Compiled) -> float:
    """FLOP of one call over all devices, as the compiler counts them; 0 where it does not."""
    analysis = compiled.cost_analysis() or {}
    if isinstance(analysis, list):
        analysis = analysis[0]
    return max(0.0, float(analysis.get("flops", 0.0))) * jax.device_count()


def peak_memory(compiled: Compiled) -> int:
    """Bytes on one device: the allocator's high-water mark where it tells, else the compiler's plan."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    plan = compiled.memory_analysis()
    if plan is None:
        return 0
    return int(
        plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    )
