"""Arithmetic on several threads gives the same bits each time."""

import os
import subprocess
import sys

GRADIENTS = """
import lshfm_pl
import torch
import torch.nn.functional as F

torch.set_num_threads(2)
torch.manual_seed(0)
image, kernel, gradient = torch.randn(1, 256, 1, 1), torch.randn(256, 256, 3, 3), torch.randn(1, 256, 1, 1)
found = set()
for index in range(200):
    image = image.detach().requires_grad_()
    F.conv2d(image, kernel, padding=1).backward(gradient)
    found.add(image.grad.numpy().tobytes())
print(len(found))
"""


def test_gradients_of_a_map_of_one_pixel_are_the_same_each_time():
    environment = {key: value for key, value in os.environ.items() if key != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", GRADIENTS], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"
