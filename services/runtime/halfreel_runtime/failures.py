"""What kind of failure an exception of the engine's thread is: the request's, or the process's.

It knows torch's exceptions by name only, so that it never imports torch.
"""

from __future__ import annotations

import contextlib
import traceback

from halfreel_runtime.errors import FatalError, HalfreelError, OutOfMemory

# torch raises plain RuntimeErrors for these where it has no class of its own; the text is its interface then.
# A convolution for whose workspaces there is no room ends in the last of them.
_MEMORY_TEXTS = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
)
_CUDA_TEXTS = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "CUDA driver error", "cuDNN error")


def engine_error(error: BaseException) -> BaseException:
    """The error as a client may hear of it and the engine acts on it.

    Out of memory, on any device, is a failure of the request (OutOfMemory). Any other CUDA error poisons the
    process: FatalError. What is not an Exception (SystemExit in a thread) ends the engine too. All else is
    returned as it is.
    """
    if isinstance(error, HalfreelError):
        return error
    if _is_out_of_memory(error):
        return OutOfMemory("The device has too little free memory for this request; ask for less of it.")
    if not isinstance(error, Exception) or _is_cuda_error(error):
        return FatalError("The engine failed and cannot go on.")
    return error


def release_frames(error: BaseException) -> None:
    """Empties the frames an error still holds, whose local variables may be tensors on the device.

    The traceback can still be printed.
    """
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        each = queue.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        with contextlib.suppress(RuntimeError):  # a frame that still runs: the engine's own
            traceback.clear_frames(each.__traceback__)
        queue += [each.__cause__, each.__context__]


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)


def _is_cuda_error(error: Exception) -> bool:
    if type(error).__name__ == "AcceleratorError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CUDA_TEXTS)
