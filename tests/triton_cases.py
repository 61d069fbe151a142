"""Runs the Triton kernel of the hash loss in Triton's interpreter, and prints how far torch's results are.

A process of its own: TRITON_INTERPRET has to be set before Triton is imported, which torch may do by itself.
"""

import json

import torch

from lshfm_pl.kernels import triton_hash_loss
from lshfm_pl.kernels.hash_loss import hash_loss_of_maps, hash_loss_of_rows
from lshfm_pl.kernels.switches import override_switches

ROWS = {
    "none": (0, 20, 24),
    "one": (1, 20, 24),
    "odd": (77, 45, 131),
    "one feature, one hash": (5, 1, 1),
    "exact tiles": (64, 64, 128),
}
"""Name → N, D, H."""
MAPS = ((9, 14), (4, 7), (1, 3))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main():
    found = {}
    for name, sizes in ROWS.items():
        for kind in ("bce", "l1", "l2"):
            for dtype in DTYPES if name == "odd" else ["float32"]:
                found[f"rows {name} {kind} {dtype}"] = compare_rows(*sizes, kind, DTYPES[dtype])
    for kind in ("bce", "l1", "l2"):
        for dtype in DTYPES:
            found[f"maps {kind} {dtype}"] = compare_maps(kind, DTYPES[dtype])
    found["extreme"] = extreme_projections()
    found["twice"] = gives_equal_bits()
    print(json.dumps(found))


def compare_rows(rows, features, hashes, kind, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(rows, features, generator=generator).to(dtype) for _ in "st")
    weight, bias = random_hash(hashes, features, generator)
    row_weights = torch.rand(rows, generator=generator)

    def results(hash, student, teacher, weight, bias):
        student = student.clone().requires_grad_()
        with override_switches(hash=hash):
            loss, agreeing = hash_loss_of_rows(student, teacher, weight, bias, row_weights, kind)
        (gradient,) = torch.autograd.grad(3 * loss, student)
        assert gradient.dtype == student.dtype
        return loss, agreeing, [gradient]

    ours = results("triton", student, teacher, weight, bias)
    # torch's products of rows are float32; products of bfloat16 rows have a matrix that is rounded to bfloat16.
    rounded = weight.bfloat16().float() if dtype == torch.bfloat16 else weight
    return differences(ours, results("plain", student.float(), teacher.float(), rounded, bias))


def compare_maps(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [torch.randn(2, 5, *size, generator=generator).to(dtype) for size in MAPS] for _ in "st"
    )
    weight, bias = random_hash(70, 5 * 9, generator)
    location_weights = [torch.rand(2, *size, generator=generator) for size in MAPS]
    triton_hash_loss.NEIGHBOURHOOD_BYTES = 1  # one image at a time

    def results(**chosen):
        leaves = [level.clone().requires_grad_() for level in student]
        with override_switches(**chosen):
            loss, agreeing = hash_loss_of_maps(leaves, teacher, location_weights, weight, bias, kind)
        gradients = torch.autograd.grad(3 * loss, leaves)
        assert all(gradient.dtype == dtype for gradient in gradients)
        return loss, agreeing, gradients

    return differences(results(hash="triton"), results(fused_hash_loss=False))


def random_hash(hashes, features, generator):
    weight = 0.3 * torch.randn(hashes, features, generator=generator)
    return weight, torch.linspace(-0.5, 0.5, hashes)


def differences(ours, expected):
    size = sum(gradient.double().norm() ** 2 for gradient in expected[2]) ** 0.5
    pairs = zip(ours[2], expected[2], strict=True)
    error = sum((own.double() - other.double()).norm() ** 2 for own, other in pairs) ** 0.5
    return {
        "loss": [ours[0].item(), expected[0].item()],
        "agreeing": [ours[1].item(), expected[1].item()],
        "gradient": float(error / size) if size else float(error),
    }


def extreme_projections():
    """Loss and derivative of one projection, for each bit of the teacher."""
    found = []
    for projection in (-1e4, -90.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 90.0, 1e4):
        for teacher in (1.0, -1.0, 0.0):
            student = torch.tensor([[projection]], requires_grad=True)
            one, nothing = torch.ones(1, 1), torch.zeros(1)
            with override_switches(hash="triton"):
                loss, _ = hash_loss_of_rows(student, torch.tensor([[teacher]]), one, nothing, None, "bce")
            found.append([projection, teacher, loss.item(), torch.autograd.grad(loss, student)[0].item()])
    return found


def gives_equal_bits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(70, 40, generator=generator, requires_grad=True) for _ in "st")
    weight, bias = random_hash(200, 40, generator)
    results = []
    for _ in range(2):
        with override_switches(hash="triton"):
            loss, _ = hash_loss_of_rows(student, teacher, weight, bias, None, "bce")
        results.append((loss.item(), torch.autograd.grad(loss, student)[0]))
    return results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])


if __name__ == "__main__":
    main()
