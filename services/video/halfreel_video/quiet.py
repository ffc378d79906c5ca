"""Keeps the model libraries from writing past the log."""

from __future__ import annotations


def quiet_libraries() -> None:
    """Silences transformers and diffusers but for errors; call before the models' modules are imported.

    Their warnings are advice to programmers, some of them show a client's prompt, and their progress bars are for
    terminals.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (transformers_logging, diffusers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
