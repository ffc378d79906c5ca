"""The language-model server of Halfreel: one model, one device, one gRPC service.

Knows nothing of films; it writes text for chat messages, under a JSON schema where one is given.
"""
