"""The Triton kernel of the hash loss, in Triton's interpreter, against torch's operations on the CPU."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import triton_cases

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton (pip install triton)"
)

KINDS = ("bce", "l1", "l2")


@pytest.fixture(scope="module")
def found():
    """What `triton_cases.py` prints in a process of its own."""
    ran = subprocess.run(
        [sys.executable, triton_cases.__file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def assert_close(case, *, value=1e-6, gradient=1e-6):
    ours, expected = case["loss"]
    assert ours == pytest.approx(expected, rel=value)
    ours, expected = case["agreeing"]
    assert ours == pytest.approx(expected, rel=value)
    assert case["gradient"] < gradient


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", triton_cases.ROWS)
def test_rows_of_any_number_have_the_loss_agreement_and_gradient_of_torchs_operations(found, sizes, kind):
    assert_close(found[f"rows {sizes} {kind} float32"])


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_several_levels_and_images_have_those_of_torchs_convolutions(found, kind):
    assert_close(found[f"maps {kind} float32"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", ["rows odd", "maps"])
def test_half_precision_features_have_them_up_to_the_rounding_of_their_products(found, features, kind):
    # float16 features have float32 products; their gradient is rounded to float16 once.
    assert_close(found[f"{features} {kind} float16"], gradient=5e-4)
    # A logit near 0 may have another bit in torch's convolutions, which round the logits themselves.
    assert_close(found[f"{features} {kind} bfloat16"], value=5e-4, gradient=2e-2)


def test_confident_and_wrong_projections_lose_no_digits_and_do_not_overflow(found):
    for projection, teacher, loss, gradient in found["extreme"]:
        signed = -projection if teacher > 0 else projection
        expected = max(signed, 0) + math.log1p(math.exp(-abs(signed)))
        assert loss == pytest.approx(expected, rel=1e-6, abs=1e-38)
        sigmoid = 1 / (1 + math.exp(-signed)) if signed > -700 else 0
        assert gradient == pytest.approx(-sigmoid if teacher > 0 else sigmoid, rel=1e-6, abs=1e-38)


def test_equal_inputs_give_equal_bits(found):
    assert found["twice"]


@pytest.mark.slow
@pytest.mark.parametrize(("features", "products"), [("fp32", "fp32"), ("bf16", "bf16")])
def test_kernel_compiles_for_a_gpu(features, products):
    """The interpreter accepts more than the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lshfm_pl.kernels.triton_hash_loss import FEATURES, HASHES, ROWS, WARPS, _hash_loss_kernel

    pointers = dict.fromkeys(("student_ptr", "teacher_ptr"), f"*{features}") | {"weight_ptr": f"*{products}"}
    pointers |= dict.fromkeys(("bias_ptr", "row_weights_ptr", "gradients_ptr", "sums_ptr"), "*fp32")
    numbers = dict.fromkeys(("num_rows", "num_features", "num_hashes", "tiles_of_part"), "i32")
    constants = {"KIND": 0, "IS_INTERPRETED": False, "ROWS": ROWS, "HASHES": HASHES, "FEATURES": FEATURES}
    signature = pointers | numbers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(_hash_loss_kernel, signature, constants)
    options = {"num_warps": WARPS, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert ("mma" in compiled.asm["ptx"]) is (products == "bf16")
