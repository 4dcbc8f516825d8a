"""Compiles CUDA kernels by NVRTC (which comes with PyTorch) at first use and stores them with the C kernels.

Kernels are loaded and launched through CUDA's driver interface; no compiler has to be installed.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from burgersgd import native

_OPTIONS = ["--std=c++17", "--device-as-default-execution-space"]
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


class CudaError(RuntimeError):
    """NVRTC is missing, or NVRTC or the driver returned an error."""


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    """Return NVRTC of the CUDA version with which torch was built. Raises CudaError where there is none."""
    version = (torch.version.cuda or "").split(".")[0]
    names = [
        f"libnvrtc.so.{version}",
        *map(str, Path(torch.__file__).parents[1].glob(f"nvidia/*/lib/libnvrtc.so.{version}")),
    ]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError(f"no {names[0]} found")


def _checked(status: int, what: str, log: str = "") -> None:
    if status:
        raise CudaError(f"{what} failed (code {status}) {' '.join(log.split())[:500]}".rstrip())


def compile_source(source: str, architecture: str) -> bytes:
    """Return the machine code (cubin) of CUDA C++ text for an architecture such as sm_90. Raises CudaError."""
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    _checked(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None), "NVRTC")
    try:
        options = [option.encode() for option in (f"--gpu-architecture={architecture}", *_OPTIONS)]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        _checked(
            status,
            "NVRTC",
            "" if status == 0 else _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program),
        )
        return _content(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _content(size_of: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _checked(size_of(program, ctypes.byref(size)), "NVRTC")
    buffer = ctypes.create_string_buffer(size.value)
    _checked(get(program, buffer), "NVRTC")
    return buffer.raw


def _text(size_of: Any, get: Any, program: ctypes.c_void_p) -> str:
    return _content(size_of, get, program).decode(errors="replace").rstrip("\0")


@functools.cache
def cubin(name: str, source: str, architecture: str) -> bytes:
    """Return the machine code of a kernel, from the cache folder or newly compiled. Raises CudaError."""
    key = hashlib.sha256(repr((source, architecture, _OPTIONS, torch.version.cuda)).encode()).hexdigest()[:16]
    stem, folder = f"{name}-{key}-", next(native.folders(), None)
    for path in [] if folder is None else sorted(folder.glob(f"{stem}*.cubin")):
        if native.is_whole(path):
            return path.read_bytes()
        path.unlink(missing_ok=True)
    code = compile_source(source, architecture)
    if folder is not None:
        handle, unfinished = tempfile.mkstemp(dir=folder, prefix=stem, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(code)
        native.kept(Path(unfinished), folder, stem, ".cubin")
    return code


class Kernel:
    """A kernel on one device, whose only argument is a structure passed by value."""

    def __init__(self, code: bytes, name: str, device: torch.device, threads: int, shared_bytes: int) -> None:
        """Load the kernel. Raises CudaError."""
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._device, self._threads, self._shared_bytes = device, threads, shared_bytes
        self.module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        torch.zeros(1, device=device)  # creates the CUDA context
        with torch.cuda.device(device):
            self._call("cuModuleLoadData", ctypes.byref(self.module), code)
            self._call("cuModuleGetFunction", ctypes.byref(self._function), self.module, name.encode())
            limit = _MAX_DYNAMIC_SHARED_SIZE_BYTES, ctypes.c_int(shared_bytes)
            self._call("cuFuncSetAttribute", self._function, *limit)

    def __call__(self, blocks: int, arguments: ctypes.Structure) -> None:
        """Launch the kernel on torch's current stream. Raises CudaError."""
        unsigned = ctypes.c_uint
        with torch.cuda.device(self._device):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
            grid, block = (
                (unsigned(blocks), unsigned(1), unsigned(1)),
                (unsigned(self._threads), unsigned(1), unsigned(1)),
            )
            self._call(
                "cuLaunchKernel", self._function, *grid, *block, unsigned(self._shared_bytes), stream, parameters, None
            )

    def _call(self, name: str, *arguments: Any) -> None:
        _checked(self._driver[name](*arguments), name)


def shared_memory(device: torch.device) -> int:
    """Return the largest number of bytes of shared memory of a thread block."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def architecture(device: torch.device) -> str:
    """Return the name of the device's architecture, such as sm_90."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
