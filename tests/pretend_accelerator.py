"""Lightning's view of the pretend device: `accelerator="pretend"` with `strategy="pretend"`."""

from typing import Any

import pretend_device
import torch
from pretend_device import DEVICE
from pytorch_lightning.accelerators import Accelerator, AcceleratorRegistry
from pytorch_lightning.strategies import SingleDeviceStrategy, StrategyRegistry


class PretendAccelerator(Accelerator):
    def setup_device(self, device: torch.device) -> None:
        assert device.type == DEVICE

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device(DEVICE, number) for number in range(devices)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return pretend_device.module.is_available()

    @staticmethod
    def name() -> str:
        return DEVICE


class PretendStrategy(SingleDeviceStrategy):
    """The strategy of a single process with a single device."""

    strategy_name = DEVICE

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"device": torch.device(DEVICE, 0), **settings})


def register() -> None:
    """Register both under the name of the device."""
    AcceleratorRegistry.register(DEVICE, PretendAccelerator, override=True)
    StrategyRegistry.register(DEVICE, PretendStrategy, override=True)


def unregister() -> None:
    AcceleratorRegistry.remove(DEVICE)
    StrategyRegistry.remove(DEVICE)
