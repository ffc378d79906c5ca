"""What every Halfreel server runs on: settings, errors, engine thread, gRPC server, memory and metrics.

It does not know any model, and imports torch only in `device_cuda` and `memory_cuda`, when a GPU is used.
"""
