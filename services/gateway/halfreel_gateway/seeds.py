"""Seeds of a film's parts, all derived from the film's one seed.

It does not know what the seeds are used for.
"""

from __future__ import annotations

import hashlib
import secrets

SEED_BITS = 63  # the contract's seeds are whole numbers in [0, 2^63 - 1]


def random_seed() -> int:
    """A seed for a film that was given none."""
    return secrets.randbits(SEED_BITS)


def script_seed(film_seed: int, draft: int) -> int:
    """The seed of the film's script.

    Args:
        film_seed: the film's.
        draft: from 1; a reply that is no script is asked for again with the next.
    """
    return _derived(film_seed, "script", draft)


def scene_seed(film_seed: int, scene_index: int) -> int:
    """The seed of one scene's clip; the same on every retry."""
    return _derived(film_seed, "scene", scene_index)


def _derived(film_seed: int, part: str, number: int) -> int:
    digest = hashlib.sha256(f"{film_seed}/{part}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)
