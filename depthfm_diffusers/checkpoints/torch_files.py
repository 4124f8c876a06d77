"""Files of `torch.save`: whether they are whole, and reading of them without running code from them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

_CHUNK = 1 << 20  # bytes read at once


def read_torch_file(path: Path, what: str, trust_pickle: bool | None = None) -> Any:
    """Reads a file of `torch.save`, checked for damage.

    It is read with `weights_only=True`, which runs no code from the file. NumPy arrays and numbers of plain types are
    accepted as well, and become `ArrayStandIn` and Python's numbers. The older format, which is not a zip file, has no
    checksums.

    Args:
        path: The file, which begins as one of `torch.save`.
        what: What errors call it.
        trust_pickle: Whether to read it by unrestricted unpickling, which can run any code that it contains. `None` is
            `False` where the caller does not let the user choose: errors then do not advise it.

    Returns:
        The content. Large tensors may be mapped from the file, not copied.

    Raises:
        ImportError: If objects in a trusted file need a package that is not installed.
        ValueError: If it is damaged or compressed, holds something else, or needs `trust_pickle`.
    """
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    records = check_archive(path, what) if is_zip else None
    lengths: Counter[int] = Counter()

    def on_the_cpu(storage: Any, location: str) -> Any:
        if storage.nbytes():  # torch may load an empty one several times
            lengths[storage.nbytes()] += 1
        return storage

    # Only the current format can be mapped into memory, and torch reads what is called `.safetensors` in another way.
    mapped = is_zip and path.suffix != ".safetensors"
    try:
        with torch.serialization.safe_globals(_NUMPY_STAND_INS), path.open("rb") as file:
            content = torch.load(
                path if mapped else file, map_location=on_the_cpu, weights_only=not trust_pickle, mmap=mapped
            )
    except ModuleNotFoundError as error:
        raise ImportError(_missing_module_message(path, what, error)) from error
    except Exception as error:
        # A damaged file can raise any exception. The restricted unpickler gives its reason after a page of advice.
        _, _, reason = str(error).rpartition("WeightsUnpickler error: ")
        reason = reason.strip().split("\n")[0]
        refused = re.search(r"GLOBAL (\S+)|(NumPy data of .+) is not supported", str(error))
        if refused and isinstance(error, pickle.UnpicklingError):
            raise ValueError(_refusal(path, what, refused[1] or refused[2], trust_pickle is not None)) from error
        raise ValueError(
            f"{what} {path} could not be read; it is damaged or not a PyTorch checkpoint: "
            f"{type(error).__name__}: {reason}"
        ) from error
    # torch takes as many bytes as the tensors need, whatever the length of the record: it would read the next one.
    if records is not None and lengths - records:
        raise ValueError(
            f"{what} {path} is damaged: the weights of a tensor have another length than its shape needs. Download or "
            "copy it again."
        )
    return content


def check_archive(path: Path, what: str) -> Counter[int]:
    """Checks the zip file that `torch.save` writes: torch itself looks at neither compression nor checksums.

    This reads the file once.

    Args:
        path: The file.
        what: What errors call it.

    Returns:
        How many members there are of each length in bytes.

    Raises:
        ValueError: If it is damaged or compressed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            compressed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            for member in [] if compressed else members:
                with archive.open(member) as file:
                    while file.read(_CHUNK):
                        pass  # the checksum is compared at the end
    except Exception as error:  # a damaged file can raise any exception
        known = {"File is not a zip file": "its end is missing"}
        reason = known.get(str(error)) or str(error).replace("Bad CRC-32 for file", "wrong checksum of")
        raise ValueError(f"{what} {path} is damaged: {reason}. Download or copy it again.") from error
    if compressed:
        raise ValueError(
            f"{what} {path} is a compressed zip file, and torch would take the compressed bytes for weights. Use the "
            "original file, or unpack this one and pack it again without compression (`zip -0 -r`)."
        )
    return Counter(member.file_size for member in members)


def _refusal(path: Path, what: str, objects: str, can_be_trusted: bool) -> str:
    advice = (
        " If you trust its source, convert it with `trust_pickle=True` (`--trust-pickle` on the command line)."
        if can_be_trusted
        else " Save the tensors alone."
    )
    if can_be_trusted and objects.startswith("omegaconf"):
        advice += " It needs omegaconf: pip install 'depthfm_diffusers[convert]'."
    return (
        f"{what} {path} holds Python objects ({objects}) that can only be read by unrestricted unpickling, which "
        f"can run any code that the file contains.{advice}"
    )


def _missing_module_message(path: Path, what: str, error: ModuleNotFoundError) -> str:
    package = (error.name or "").split(".")[0]
    how = (
        "Install it: pip install 'depthfm_diffusers[convert]'"
        if package == "omegaconf"
        else "Install the package that provides it"
    )
    return f"{what} {path} holds objects of the package {package!r}, which is not installed. {how}."


# Unpickling real NumPy objects is not safe with hostile data: the state of an array may claim to hold Python objects.
# So NumPy's names stand for these classes and functions, which accept plain numbers only.


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise pickle.UnpicklingError(f"NumPy data of type {code!r} is not supported.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order, others = state[1], state[2:5]
        if byte_order not in ("<", ">", "|", "=") or any(other is not None for other in others):
            raise pickle.UnpicklingError("NumPy data of a structured type is not supported.")
        self.dtype = self.dtype.newbyteorder(byte_order)


class ArrayStandIn:
    """Stands in for `numpy.ndarray`; `array` has the values that were read, in native byte order."""

    array: np.ndarray = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("NumPy data of Python objects is not supported.")
        array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")
        self.array = array.astype(dtype.dtype.newbyteorder("="))


def _new_array(cls: type, shape: tuple[int, ...], code: bytes) -> ArrayStandIn:
    """Stands in for `numpy._core.multiarray._reconstruct`, which makes the empty array that a state then fills."""
    return ArrayStandIn()


def _number(dtype: _Dtype, data: bytes) -> bool | int | float:
    """Stands in for `numpy._core.multiarray.scalar`."""
    return np.frombuffer(data, dtype.dtype)[0].item()


_NUMPY_STAND_INS: list[Any] = [
    (ArrayStandIn, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    *[(_new_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")],
    *[(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]
