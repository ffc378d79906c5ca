"""Joins clips into one film, with a caption for each: without encoding again where the clips agree.

It does not know where clips come from or where the film goes. The same clips, captions and title give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from halfreel_gateway.clip import DamagedVideoError, VideoFacts, read_facts

# The encoder for clips that disagree. One thread, because its output depends on how many there are; no macroblock tree,
# because with it some encodings of the same pictures come out otherwise (54 of 300 at 96x64; without, none of 2,000).
ENCODER = "libx264"
_ENCODER_OPTIONS = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
# faststart: a browser plays the film before it has all of it. bitexact: no versions of libraries in the file.
_CONTAINER_OPTIONS = {"movflags": "+faststart", "fflags": "+bitexact"}
_CAPTION_TIME_BASE = Fraction(1, 1000)
# libavcodec makes the caption track's header from this one, in the format of its own captions (ASS).
_CAPTION_HEADER = b"""[Script Info]
ScriptType: v4.00+
PlayResX: 384
PlayResY: 288

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,0

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


@dataclass(frozen=True)
class Part:
    """One clip of a film, and what its caption says."""

    clip: Path
    caption: str


class DamagedPartError(Exception):
    """One of the clips does not play.

    Args:
        index: which one, from 0.
    """

    def __init__(self, index: int) -> None:
        super().__init__(f"clip {index} does not play")
        self.index = index


def join(parts: Sequence[Part], title: str, output: Path) -> VideoFacts:
    """Writes the film and checks what was written.

    Args:
        parts: at least one, in order.
        title: written into the file.
        output: a file, which is overwritten.

    Raises:
        DamagedPartError: a clip does not play.
        DamagedVideoError: the film that was written is not what it must be.
        OSError: the file can't be written, such as for want of room.
    """
    facts = [_part_facts(index, part) for index, part in enumerate(parts)]
    try:
        _write(parts, facts, title, output)
    except av.error.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise DamagedVideoError("the clips can't be joined") from error
    return _checked(output, facts)


def _write(parts: Sequence[Part], facts: Sequence[VideoFacts], title: str, output: Path) -> None:
    first = facts[0]
    with av.open(str(output), "w", format="mp4", options=_CONTAINER_OPTIONS) as film:
        film.metadata["title"] = title
        if all(each.continues(first) for each in facts):
            with av.open(str(parts[0].clip), format="mp4") as template:
                video = film.add_stream_from_template(template.streams.video[0])
            packets = _copied(parts, facts)
        else:
            video = film.add_stream(ENCODER, rate=first.rate, options=_ENCODER_OPTIONS)
            video.width, video.height, video.pix_fmt = first.width_px, first.height_px, "yuv420p"
            video.codec_context.time_base = 1 / first.rate
            packets = _encoded(parts, facts, video)
        captions = film.add_stream("mov_text")
        captions.codec_context.subtitle_header = _CAPTION_HEADER
        captions.codec_context.time_base = captions.time_base = _CAPTION_TIME_BASE
        cues = _cues(parts, [count / first.rate for count in _frame_counts(facts)])
        _interleave(film, video, packets, captions, cues)


def _part_facts(index: int, part: Part) -> VideoFacts:
    try:
        return read_facts(part.clip)
    except DamagedVideoError as error:
        raise DamagedPartError(index) from error


def _copied(parts: Sequence[Part], facts: Sequence[VideoFacts]) -> Iterator[Any]:
    """The packets of all clips, each clip's moved to where the one before ends."""
    start_s = Fraction(0)
    for part, each in zip(parts, facts, strict=True):
        offset = round(start_s / each.time_base)
        with av.open(str(part.clip), format="mp4") as clip:
            for packet in clip.demux(clip.streams.video[0]):
                if packet.size:
                    packet.pts += offset
                    packet.dts += offset
                    yield packet
        start_s += each.duration_s


def _frame_counts(facts: Sequence[VideoFacts]) -> list[int]:
    """Frames that each clip takes of the film, which runs at the first clip's rate."""
    return [round(each.duration_s * facts[0].rate) for each in facts]


def _encoded(parts: Sequence[Part], facts: Sequence[VideoFacts], video: Any) -> Iterator[Any]:
    """The frames of all clips at the first clip's size and rate, encoded anew; each clip plays as long as before."""
    number = 0
    for part, each, count in zip(parts, facts, _frame_counts(facts), strict=True):
        shown = Counter(int(index * each.rate / facts[0].rate) for index in range(count))
        with av.open(str(part.clip), format="mp4") as clip:
            for index, frame in enumerate(clip.decode(clip.streams.video[0])):
                scaled = frame.reformat(video.width, video.height, "yuv420p")
                scaled.time_base = video.codec_context.time_base
                scaled.pict_type = 0  # the encoder chooses
                for _ in range(shown[index]):
                    scaled.pts = number
                    number += 1
                    yield from video.encode(scaled)
    yield from video.encode(None)


def _cues(parts: Sequence[Part], durations_s: Sequence[Fraction]) -> list[Any]:
    """One caption a clip, over the whole of it.

    The packets are made by hand, as 3GPP TS 26.245 has them (a length, then UTF-8): libavcodec's encoder would read
    braces and backslashes in the text as formatting.
    """
    cues, start_s = [], Fraction(0)
    for part, duration_s in zip(parts, durations_s, strict=True):
        text = part.caption.encode()
        cue = av.Packet(len(text).to_bytes(2, "big") + text)
        begin, end = (round(at / _CAPTION_TIME_BASE) for at in (start_s, start_s + duration_s))
        cue.pts = cue.dts = begin
        cue.duration, cue.time_base = end - begin, _CAPTION_TIME_BASE
        cues.append(cue)
        start_s += duration_s
    return cues


def _interleave(film: Any, video: Any, packets: Iterator[Any], captions: Any, cues: list[Any]) -> None:
    for packet in packets:
        while cues and cues[0].pts * _CAPTION_TIME_BASE <= packet.pts * packet.time_base:
            _mux(film, captions, cues.pop(0))
        _mux(film, video, packet)
    for cue in cues:
        _mux(film, captions, cue)


def _mux(film: Any, stream: Any, packet: Any) -> None:
    packet.stream = stream
    film.mux(packet)


def _checked(output: Path, facts: Sequence[VideoFacts]) -> VideoFacts:
    """What the written film is, when it is as big, as long and as fast as its clips."""
    film = read_facts(output)
    want = sum(_frame_counts(facts))
    if (film.width_px, film.height_px) != (facts[0].width_px, facts[0].height_px):
        raise DamagedVideoError(f"the film is {film.width_px}x{film.height_px}, unlike its first clip")
    if film.frame_count != want:
        raise DamagedVideoError(f"the film has {film.frame_count} frames; its clips have {want}")
    if abs(film.duration_s - want / facts[0].rate) > 1 / facts[0].rate:
        raise DamagedVideoError(f"the film plays {float(film.duration_s):.3f} s; its clips take another time")
    return film
