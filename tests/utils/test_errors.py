"""What an exception tells the user."""

from __future__ import annotations

import json

import pytest

from depthfm_diffusers.utils.errors import describe_error


def raised(function, *arguments: object) -> Exception:
    with pytest.raises(Exception) as info:
        function(*arguments)
    return info.value


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("`steps` must be at least 1."), "`steps` must be at least 1."),
        (ValueError(), "ValueError"),
        (RuntimeError("  \n "), "RuntimeError"),
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 9 GiB"), "Unable to allocate 9 GiB"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory: a.png"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("cut off"), "cut off"),
        (OSError(), "OSError"),
        (
            RuntimeError("\nCUDA error: out of memory\nFor debugging, pass CUDA_LAUNCH_BLOCKING=1"),
            "CUDA error: out of memory",
        ),
        (
            RuntimeError("Error(s) in loading UNet:\n\tsize mismatch for a\n\tsize mismatch for b"),
            "Error(s) in loading UNet: size mismatch for a",
        ),
        (KeyError("unet"), "unet is missing"),
        (KeyError(3), "3 is missing"),
        (KeyError("there is no scene 3"), "there is no scene 3"),
        (KeyError(), "KeyError"),
        (raised(b"ab\xff".decode, "utf-8"), "not utf-8 text (invalid start byte, byte 2)"),
        (raised(json.loads, ""), "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_an_exception_is_one_line(error, line):
    assert describe_error(error) == line
