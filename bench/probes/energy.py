"""Energy used by a GPU, where NVIDIA's management library (NVML) counts it."""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Returns the joules that the device has used since its driver was loaded.
Counter = Callable[[], float]


def counter_of(device: torch.device) -> Counter | None:
    """The energy counter of a device; None on a CPU, without NVML, and on GPUs that have no such counter.

    It counts the energy of the whole GPU, that of other processes included.
    """
    if device.type != "cuda":
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000  # NVML counts millijoules
