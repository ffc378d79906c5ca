"""What every Halfreel server runs on: settings, errors, engine thread, gRPC server, memory and metrics.

It does not know any model, and imports torch only in `device_cuda` and `memory_cuda`, when a GPU is used.
"""

import os

# Before gRPC is imported: it would tell of every handshake that fails, on stderr, in lines that are no JSON.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
