"""Thousands of damaged files: seeded mutations of bytes, text, JSON, XML and the values of checkpoints.

An input is determined by its seed, so a failure can be reproduced: `LSHFM_FUZZ_FIRST=<seed>
LSHFM_FUZZ_FACTOR=0.001`. `LSHFM_FUZZ_FACTOR=20` tries twenty times as many.
"""

import contextlib
import copy
import json
import os
import random
import re
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from lshfm_pl.cli.failures import error_message
from lshfm_pl.errors import LSHFMError

__all__ = [
    "damage_file",
    "is_readable",
    "mutated_bytes",
    "mutated_coco",
    "mutated_json",
    "mutated_value",
    "mutated_yolo",
    "outcomes",
    "seeds",
]

FACTOR = float(os.environ.get("LSHFM_FUZZ_FACTOR", "1"))
FIRST = int(os.environ.get("LSHFM_FUZZ_FIRST", "0"))

MEMORY = 3 * 2**30
"""Bytes of address space that one input may ask for beyond what is there."""
SECONDS = 20
"""That one input may take."""
LONGEST_MESSAGE = 1500

NASTY_TEXTS = (
    "", " ", "\0", "\n", "a\nb", "../../etc/passwd", "/etc/passwd", "~", "~nobody-there", "=1+1", "a|b", "$x$",
    "%s", "{}", "${x}", "${oc.env:HOME}", "???", "null", "nan", "1e999", "-1", "x" * 5000, "\ud800", "\u202e",
    "\x1b[31m\x9b",
    "é" * 300, "<script>", "os.system", "lshfm_pl.data.coco.datamodule.COCODataModule",
    "[" * 300, "1_0", "0x10", "None",
)  # fmt: skip
NASTY_NUMBERS = (
    0, 1, -1, 2, 255, 10**6, -(10**6), 2**31, -(2**31) - 1, 2**63, 10**18, 10**30, 10**400, 0.5, -0.5, 1e-320,
    1e30, 1e308, float("inf"), float("-inf"), float("nan"), True, False,
)  # fmt: skip
NASTY_BYTES = (b"", b"\0", b"\xff", b"\xfe\xff", b"\r", b"\n", b"<", b"&", b"[", b"{", b"\x80", b"'", b'"')
XML_PIECES = (
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"<object>", b"</object>", b"<name></name>", b"&#0;", b"&b;", b"<![CDATA[",
    b"<!--", b"<size/>", b"<bndbox/>", b"<?xml version='1.0' encoding='utf-16'?>", b"<part>", b"NaN", b"1e400",
    b"inf", b"-5", b"0", b"1,5", b"<xmin>", b"</annotation>", b"<object><name>a&#10;b</name></object>",
)  # fmt: skip
YAML_PIECES = (
    *NASTY_BYTES, b"&a [*a, *a]", b"*a", b"!!python/object:os.system", b"- ", b": ", b"\t", b"#", b"---\n",
    b"names:\n", b"nc: 3\n", b"path: /\n", b"0", b"nan", b"1e400", b"-1", b"1,5", b"0.5 0.5 0.5 0.5 0.5 0.5 0.5",
    b"[null]", b"~",
)  # fmt: skip


def seeds(number: int) -> range:
    """The seeds to try: this number, times the factor in the environment."""
    return range(FIRST, FIRST + max(1, round(number * FACTOR)))


# Mutations


def mutated_bytes(data: bytes, dice: random.Random, pieces: tuple[bytes, ...] = NASTY_BYTES) -> bytes:
    """Damages bytes one to four times: flips bits, or removes, repeats, overwrites, swaps or inserts parts."""
    content = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        size = len(content)
        start = dice.randrange(size + 1)
        length = dice.choice((1, 1, 4, 30, 400, size // 3 + 1))
        match dice.randrange(8):
            case 0:
                del content[start : start + length]
            case 1:
                del content[start:]
            case 2:
                content[start:start] = content[start : start + length]
            case 3:
                content[start : start + length] = bytes(min(length, size - start))
            case 4 if size:
                content[start % size] ^= 1 << dice.randrange(8)
            case 5 if size:
                content[start % size] = dice.randrange(256)
            case 6:
                content[start : start + dice.choice((0, length))] = dice.choice(pieces)
            case _:
                number = str(dice.choice(NASTY_NUMBERS)).encode()
                found = list(re.finditer(rb"\d+", content[:20_000]))
                if found:
                    place = dice.choice(found)
                    content[place.start() : place.end()] = number[:400]
    return bytes(content)


def mutated_value(value: Any, dice: random.Random) -> Any:
    """A copy of nested dicts and lists with one to three values, keys or lengths changed."""
    root = [copy.deepcopy(value)]
    for _ in range(dice.choice((1, 1, 2, 3))):
        places = list(_places(root))
        container, key = dice.choice(places)
        container[key] = _instead_of(container[key], dice, places)
        if isinstance(container, dict) and dice.random() < 0.15:
            moved = container.pop(key)
            if dice.random() < 0.5:
                container[dice.choice([*NASTY_TEXTS, str(key) + "x"])] = moved
    return root[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield value, key
            yield from _places(item)
    elif isinstance(value, list):
        # The first items of a long list are enough.
        for index, item in enumerate(value[:5]):
            yield value, index
            yield from _places(item)


def _instead_of(value: Any, dice: random.Random, places: list[tuple[Any, Any]]) -> Any:
    choice = dice.randrange(10)
    if choice < 3:
        return dice.choice(NASTY_NUMBERS)
    if choice < 5:
        return dice.choice(NASTY_TEXTS)
    if choice == 5:
        return dice.choice((None, [], {}, [None], [[]], {"a": {}}, [1, "a", None], [0] * 1000))
    if choice == 6:
        container, key = dice.choice(places)
        return copy.deepcopy(container[key])
    if choice == 7:
        return [value]
    if choice == 8:
        return {"x": value}
    if isinstance(value, torch.Tensor):
        return dice.choice((value.flatten()[:1], value.double() * float("nan"), value.long(), value[None], 3))
    if isinstance(value, int | float):
        return str(value)
    return value * 2 if isinstance(value, list | str) and len(value) < 10_000 else None


def mutated_json(data: bytes, dice: random.Random) -> bytes:
    """Damages JSON, either its values or its bytes."""
    if dice.random() < 0.25:
        return mutated_bytes(data, dice)
    return json.dumps(mutated_value(json.loads(data), dice)).encode("utf-8", "surrogatepass")


def mutated_coco(data: bytes, dice: random.Random) -> bytes:
    """Damages COCO's JSON, half of the times with entries that come again, also a class with a second id."""
    content = json.loads(data)
    if dice.random() < 0.5:
        first = content["categories"][0]
        content["categories"] += [first, {**first, "id": 99, "supercategory": "none"}]
        for key in ("images", "annotations"):
            content[key].append(content[key][0])
    return mutated_json(json.dumps(content).encode(), dice)


def mutated_yolo(data: bytes, dice: random.Random) -> bytes:
    """Damages a description in YAML, its values or its bytes, or the bytes of a label file."""
    content = yaml.safe_load(data)
    if not isinstance(content, dict) or dice.random() < 0.4:
        return mutated_bytes(data, dice, YAML_PIECES)
    mutated = mutated_value(content, dice)
    # JSON is YAML too. A part that comes twice would become an anchor in YAML's own writer, which hides it.
    return (
        json.dumps(mutated).encode()
        if dice.random() < 0.5
        else yaml.safe_dump(mutated, allow_unicode=True).encode("utf-8", "surrogatepass")
    )


def damage_file(path: Path, dice: random.Random, mutate: Callable[[bytes, random.Random], bytes]) -> None:
    """Change the content of a file, or, once in twenty times, replace it with something else."""
    if dice.random() > 0.05:
        path.write_bytes(mutate(path.read_bytes(), dice))
        return
    content = path.read_bytes()
    path.unlink()
    match dice.randrange(7):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("/dev/zero")
        case 3:
            path.symlink_to(path.name)
        case 4:
            path.symlink_to("nothing")
        case 5:
            path.write_bytes(b"")
        case _:
            path.write_bytes(content[: len(content) // 2])


# Outcomes


def outcomes(trial: Callable[[int], Any], numbers: range) -> list[str]:
    """Run a trial with each seed; returns what went wrong, a line or a traceback a seed.

    Right is a return, or a failure of one or two lines that is an `LSHFMError` or an error of the system, within
    the limits of time and memory.
    """
    wrong = []
    with _limited_memory():
        for seed in numbers:
            try:
                with _limited_time():
                    trial(seed)
            except (LSHFMError, OSError) as error:
                lines = str(error).strip().splitlines()
                if not 1 <= len(lines) <= 2 or not is_readable(error_message(error)):
                    wrong.append(
                        f"seed {seed}: {len(lines)} lines of {len(str(error))}: {str(error)[:300]!r}"
                    )
            except (Exception, SystemExit) as error:
                trace = "".join(traceback.format_exception(error)[-6:])
                wrong.append(f"seed {seed}: {trace[-2500:]}")
    return wrong


def is_readable(text: str) -> bool:
    """Whether a message is short and contains no control characters."""
    return len(text) <= LONGEST_MESSAGE and all(line.isprintable() for line in text.split("\n"))


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = (
        int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    )
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


class TooSlowError(Exception):
    """An input that took longer than it may."""


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    def end(signum: int, frame: Any) -> None:
        raise TooSlowError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
