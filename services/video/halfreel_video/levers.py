"""How the work on a clip is laid out: what saves memory, at what price. Knows nothing of torch.

Levers that decide in which groups numbers are added up can change pixels, so all of them are part of what decides a
clip's bytes; offloading and streaming move weights alone and change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from halfreel.gpu.v1 import gpu_pb2
from halfreel.video.v1 import video_pb2
from halfreel_runtime.checks import Checks

SDPA, XFORMERS, SLICED = "sdpa", "xformers", "sliced"
ATTENTION_BACKENDS = (SDPA, XFORMERS, SLICED)
MAX_DECODE_CHUNK, MAX_FEED_FORWARD_CHUNKS = 200, 64

Message = video_pb2.GenerateResponse.Levers


@dataclass(frozen=True)
class Levers:
    """One way to lay out the work.

    Attributes:
        decode_chunk_frame_count: frames that the VAE decodes at once.
        attention_backend: "sdpa", "xformers" or "sliced".
        split_guidance: the two halves of guidance one after the other.
        feed_forward_chunk_count: parts that feed-forward layers are run in; 1 runs them whole.
        offload_idle_parts: parts of the model are on the device only while they work.
        stream_weights: the UNet's weights pass through the device ahead of their use; implies that its own weights are
            not kept there.
        compiled: blocks run by kernels of our own that are compiled for the device, where they are ready.
    """

    decode_chunk_frame_count: int = 8
    attention_backend: str = SDPA
    split_guidance: bool = False
    feed_forward_chunk_count: int = 1
    offload_idle_parts: bool = False
    stream_weights: bool = False
    compiled: bool = False

    @property
    def fuses(self) -> bool:
        """Whether blocks run fused where they are ready: they know of no other attention, and of no layers in parts."""
        return self.compiled and self.attention_backend == SDPA and self.feed_forward_chunk_count == 1

    @property
    def holds_denoising(self) -> bool:
        """Whether denoising is held to its plan: not where nothing is saved, for there that costs a tenth of the time.

        Decoding always is.
        """
        return self.attention_backend == SLICED or self.feed_forward_chunk_count > 1 or self.stream_weights

    @classmethod
    def read(cls, message: Message) -> Levers:
        """Takes a request's levers; what it leaves at zero is as without that lever.

        Raises:
            InvalidArgument: INVALID_FIELD, naming each lever that is out of its range.
        """
        defaults, checks = cls(), Checks()
        levers = cls(
            decode_chunk_frame_count=message.decode_chunk_frame_count or defaults.decode_chunk_frame_count,
            attention_backend=message.attention_backend or SDPA,
            split_guidance=message.split_guidance,
            feed_forward_chunk_count=message.feed_forward_chunk_count or 1,
            offload_idle_parts=message.offload_idle_parts,
            stream_weights=message.stream_weights,
            compiled=message.compiled,
        )
        checks.between(
            "levers.decode_chunk_frame_count", levers.decode_chunk_frame_count, 1, MAX_DECODE_CHUNK, "frames"
        )
        checks.between(
            "levers.feed_forward_chunk_count", levers.feed_forward_chunk_count, 1, MAX_FEED_FORWARD_CHUNKS, "parts"
        )
        checks.one_of("levers.attention_backend", levers.attention_backend, ATTENTION_BACKENDS)
        checks.done()
        return levers

    def message(self) -> Message:
        """As the contract has it."""
        return Message(
            decode_chunk_frame_count=self.decode_chunk_frame_count,
            attention_backend=self.attention_backend,
            split_guidance=self.split_guidance,
            feed_forward_chunk_count=self.feed_forward_chunk_count,
            offload_idle_parts=self.offload_idle_parts,
            stream_weights=self.stream_weights,
            compiled=self.compiled,
        )

    def differences(self, other: Levers) -> Iterator[tuple[str, str]]:
        """The name and the value of each lever in which `other` is not as this."""
        for each in fields(self):
            value = getattr(other, each.name)
            if value != getattr(self, each.name):
                yield each.name, str(value).lower()

    def statuses(self) -> list[gpu_pb2.LeverStatus]:
        """As a report of memory tells them."""
        return [
            gpu_pb2.LeverStatus(lever=each.name, value=str(getattr(self, each.name)).lower()) for each in fields(self)
        ]

    def with_saving(self) -> Levers:
        """The same with every lever of the denoising pulled; the decode chunk and the attention stay.

        Fused blocks know nothing of feed-forward layers in parts.
        """
        return replace(
            self,
            split_guidance=True,
            feed_forward_chunk_count=max(SAVER_CHUNK_COUNT, self.feed_forward_chunk_count),
            offload_idle_parts=True,
            stream_weights=True,
            compiled=False,
        )


# More parts than these save nothing more: the attention's own tensors are then the largest.
SAVER_CHUNK_COUNT = 8
