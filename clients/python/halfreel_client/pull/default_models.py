"""The three large default models, and under what licences they come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DefaultModel:
    """A model that `halfreel pull` knows by a short name."""

    name: str
    repo_id: str
    licence: str


DEFAULT_MODELS = (
    DefaultModel(
        "llm",
        "zai-org/chatglm3-6b",
        "the ChatGLM3-6B model licence: free for research, and for commercial use after registration with its makers",
    ),
    DefaultModel(
        "video",
        "stabilityai/stable-video-diffusion-img2vid-xt",
        "a licence of Stability AI that must be accepted on its page first, and that limits commercial use",
    ),
    DefaultModel(
        "keyframe",
        "stabilityai/sd-turbo",
        "a licence of Stability AI that limits commercial use",
    ),
)


def repo_id_of(name: str) -> str:
    """The hub's id for a short name; anything else is an id already."""
    return next((model.repo_id for model in DEFAULT_MODELS if model.name == name), name)


def licence_of(repo_id: str) -> str:
    """What is to be said of the licence; for other models the page itself must tell."""
    return next((model.licence for model in DEFAULT_MODELS if model.repo_id == repo_id), "see its page")
