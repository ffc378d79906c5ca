"""Writes the table of cards in docs/memory.md from the planner, or checks that the committed one is what it says.

It knows the caps of cards: of so many GiB the driver and a desktop take a part.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from halfreel_runtime.plan import Profile, Room
from halfreel_video.architecture import Architecture
from halfreel_video.coefficients import shipped, shipped_architecture
from halfreel_video.estimate import Estimate
from halfreel_video.levers import Levers
from halfreel_video.planner import Choice, Planner, Wish

PAGE = Path(__file__).with_name("memory.md")
BEGIN, END = "<!-- cards: written by docs/make_cards.py -->", "<!-- cards end -->"
GIB = 2**30
USABLE_GIB = {6: 5.6, 8: 7.6, 12: 11.5, 16: 15.5, 24: 23.4, 40: 39.4, 80: 79.1}


def choose(card_gib: int, profile: Profile, dtype: str) -> Choice:
    """SVD-XT's own clip on a card that nobody else uses."""
    known = shipped(dtype)
    planner = Planner(Estimate(Architecture.from_json(shipped_architecture()), known, dtype))
    wish = Wish(1024, 576, 25, 25, True, True, None, None, profile, 25)
    return planner.choose(wish, Room(int(USABLE_GIB[card_gib] * GIB)), known.context_bytes)[0]


def words(levers: Levers) -> str:
    """A set of levers in a few words."""
    told = [f"decode {levers.decode_chunk_frame_count}"]
    if levers.split_guidance:
        told.append("split")
    if levers.feed_forward_chunk_count > 1:
        told.append(f"feed-forward in {levers.feed_forward_chunk_count}")
    if levers.attention_backend != "sdpa":
        told.append(levers.attention_backend)
    if levers.offload_idle_parts:
        told.append("offload")
    if levers.stream_weights:
        told.append("streamed")
    return ", ".join(told)


def table() -> str:
    """The rows of all cards."""
    lines = [
        "| card | usable | levers that `auto` takes (FP16) | takes | a clip | FP32, `quality` |",
        "|---|---|---|---|---|---|",
    ]
    for card, usable in USABLE_GIB.items():
        half, full = choose(card, Profile.AUTO, "float16"), choose(card, Profile.QUALITY, "float32")
        fits = f"{half.plan.needed_bytes / GIB:.1f} GiB | {half.plan.seconds:.1f} s"
        if not half.plan.fits:
            fits = "does not fit | -"
        precise = "no"
        if full.plan.fits:
            precise = f"yes, {full.plan.needed_bytes / GIB:.1f} GiB, {full.plan.seconds:.0f} s"
        lines.append(f"| {card} GiB | {usable} GiB | {words(half.levers)} | {fits} | {precise} |")
    return "\n".join(lines)


def page() -> str:
    """The page with the table as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


def main() -> int:
    """Writes the table, or with --check only compares it."""
    parser = argparse.ArgumentParser(description="Writes the table of cards in docs/memory.md from the planner.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed page differs")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    sys.stderr.write("the cards in docs/memory.md are not what the planner says: run docs/make_cards.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
