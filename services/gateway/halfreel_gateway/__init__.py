"""The gateway of Halfreel: it takes ideas, runs the production of their films, and never loses one."""

import halfreel_runtime  # noqa: F401 - quiets gRPC, and must come before it
