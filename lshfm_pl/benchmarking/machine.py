"""What a measurement was made on: the names, memory and versions of the machine."""

import os
import platform
from typing import Any

import torch
import torchvision

from lshfm_pl.kernels.hash_choice import driver_version
from lshfm_pl.runs.results import code_version
from lshfm_pl.training.precision import cpu_capabilities

__all__ = ["machine_facts"]


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Names, memory and versions, for the page and the JSON file."""
    capabilities = cpu_capabilities()
    facts: dict[str, Any] = {
        "device": "CPU",
        "CPU": capabilities.get("cpu_name") or platform.processor() or platform.machine(),
        "CPU instructions": torch.backends.cpu.get_cpu_capability(),
        "CPU cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        **code_version()["versions"],
        "torchvision operators": torchvision.__version__,
        "code": code_version()["code_hash"],
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "devices": torch.cuda.device_count(),
            "memory": f"{properties.total_memory / 2**30:.1f} GiB",
            "compute capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "driver": driver_version(),
            "CUDA": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
        }
    return facts
