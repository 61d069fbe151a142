"""Freezing does not change the outputs of a detector."""

import copy

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small_detectors import TEACHER_OF, as_float, random_batch, small_detector
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors import build_detector
from lshfm_pl.detectors.frozen import freeze

TEACHERS = sorted(TEACHER_OF.values())
OF_RESNETS = [name for name in TEACHERS if "resnet" in name]
"""Their bodies fold frozen norms under autocast too; other bodies compute these norms in float32."""
MODELS = sorted(
    path.stem for path in (CONFIG_DIR / "model").glob("[!_]*.yaml") if path.stem != "ssd300_vgg16"
)
"""But for the one that has no norms and is of one width."""


def with_random_norms(detector):
    """Gives the norms statistics and factors as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in detector.modules():
        if isinstance(module, FrozenBatchNorm2d | _BatchNorm):
            for name in ("running_mean", "bias"):
                getattr(module, name).data.normal_(0, 0.1, generator=generator)
            for name in ("running_var", "weight"):
                getattr(module, name).data.uniform_(0.5, 1, generator=generator)
    return detector.eval()


def fixed_norms(detector):
    return [module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d | _BatchNorm)]


@pytest.mark.parametrize("name", MODELS)
def test_backbone_of_every_model_gives_the_same_without_its_norms(name):
    with initialize_config_dir(str(CONFIG_DIR / "model"), version_base="1.3"):
        config = OmegaConf.to_container(compose(name), resolve=True)
    config["backbone_weights"] = None
    if "/" not in config["backbone"]:
        config["width"] = 0.125
    detector = with_random_norms(build_detector(config, num_classes=4)).double()
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = detector.backbone(images)
        found = freeze(detector).backbone(images)
    assert not fixed_norms(detector)
    expected, found = ([x] if isinstance(x, torch.Tensor) else list(x.values()) for x in (expected, found))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "bn_frozen_stats", "gn"])
@pytest.mark.parametrize("name", TEACHERS)
def test_detections_are_the_same(name, norm):
    threshold = "box_score_thresh" if name.startswith("fasterrcnn") else "score_thresh"
    detector = with_random_norms(small_detector(name, norm=norm, **{threshold: 0.0})).double()
    images = [image.double() for image in as_float(random_batch()[0])]
    with torch.no_grad():
        expected, found = detector(images), freeze(detector)(images)
    for before, after in zip(expected, found, strict=True):
        assert len(before["scores"]) > 0
        torch.testing.assert_close(after["scores"], before["scores"], rtol=1e-9, atol=0)
        torch.testing.assert_close(after["boxes"], before["boxes"], rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("name", TEACHERS)
def test_nothing_trains_and_weights_keep_their_layout(name):
    detector = freeze(small_detector(name, norm="bn").train())
    assert not any(module.training for module in detector.modules())
    assert not any(parameter.requires_grad for parameter in detector.parameters())
    kernels = [value for value in detector.backbone.parameters() if value.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("name", OF_RESNETS)
def test_weights_in_the_type_of_autocast_lose_no_more_than_autocast_does_and_take_half_the_memory(name):
    detector = with_random_norms(small_detector(name, norm="frozen_bn"))
    small = freeze(copy.deepcopy(detector), torch.bfloat16)
    images = torch.rand(2, 3, 128, 128)

    def maps(network):
        return torch.cat([level.float().flatten() for level in network.backbone(images).values()])

    with torch.no_grad():
        exact = maps(detector)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            of_float32, of_bfloat16 = maps(detector), maps(small)
    errors = [float((found - exact).norm() / exact.norm()) for found in (of_float32, of_bfloat16)]
    assert 1e-4 < errors[1] < 1.2 * errors[0] < 0.05
    weights = [sum(tensor.nbytes for tensor in each.state_dict().values()) for each in (detector, small)]
    assert weights[1] < 0.51 * weights[0]


def test_frozen_twice_is_frozen_once():
    detector = freeze(with_random_norms(small_detector(TEACHERS[0], norm="bn")))
    before = copy.deepcopy(detector.state_dict())
    freeze(detector)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
