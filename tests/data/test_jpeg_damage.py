import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lshfm_pl.data.jpeg_damage import capture_error_output, is_harmless, jpeg_messages


@pytest.fixture
def jpeg():
    pixels = np.random.RandomState(0).randint(0, 256, (48, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG")
    return file.getvalue()


def extraneous(count, marker):
    return f"Corrupt JPEG data: {count} extraneous bytes before marker 0x{marker:02x}"


def test_padding_at_the_end_is_harmless_and_other_bytes_are_not(jpeg):
    assert is_harmless(extraneous(90, 0xD9), jpeg[:-2] + bytes(90) + jpeg[-2:])
    assert not is_harmless(extraneous(90, 0xD9), jpeg)
    assert not is_harmless("Corrupt JPEG data: bad Huffman code", jpeg)


def test_bytes_among_the_headers_are_harmless(jpeg):
    assert is_harmless(extraneous(5, 0xE0), jpeg[:2] + b"abcde" + jpeg[2:])
    assert not is_harmless(extraneous(7, 0xDA), jpeg)


def test_what_others_write_meanwhile_is_passed_on(capfd):
    with capture_error_output() as output:
        os.write(2, b"Corrupt JPEG data: bad Huffman code\n")
        print("a line of another thread", file=sys.stderr)
        sys.stderr.flush()
        messages = jpeg_messages(output.take())
    assert messages == ["Corrupt JPEG data: bad Huffman code"]
    print("after", file=sys.stderr)
    assert capfd.readouterr().err.splitlines() == ["a line of another thread", "after"]


def test_what_is_said_at_a_signal_is_passed_on_before_the_process_ends():
    script = (
        "import os, signal\n"
        "from lshfm_pl.signals import exit_on_signals\n"
        "from lshfm_pl.data.jpeg_damage import capture_error_output\n"
        "exit_on_signals()\n"
        "with capture_error_output():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 128 + signal.SIGTERM
    assert ended.stderr.splitlines() == ["SIGTERM: stopped"]
