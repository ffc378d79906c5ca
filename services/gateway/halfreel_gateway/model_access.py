"""How the gateway proves itself to the model servers, and which of them it believes.

It does not know what is called.
"""

from __future__ import annotations

import grpc

from halfreel_gateway.channels import ModelAccess
from halfreel_gateway.settings import GatewaySettings
from halfreel_runtime.bearer import BearerToken
from halfreel_runtime.exposure import is_loopback
from halfreel_runtime.watched_file import FileRefusedError, read_public, read_secret


def model_access(settings: GatewaySettings) -> ModelAccess:
    """The access that the settings tell of. A new token is noticed within a second; new certificates at a restart.

    Raises:
        ValueError: one line on what does not go together, or can't be read.
    """
    ca, certificate, key = settings.model_ca_file, settings.model_certificate_file, settings.model_key_file
    if (certificate is None) != (key is None):
        raise ValueError("model_certificate_file and model_key_file go together; one of them is missing")
    if certificate is not None and ca is None:
        raise ValueError("model_certificate_file is shown over TLS alone; set model_ca_file")
    if settings.model_token_file is not None and ca is None:
        for address in (*settings.llm_addresses, *settings.video_addresses):
            if not is_loopback(address.rpartition(":")[0].strip("[]")):
                raise ValueError(f"model_token_file would be sent to {address} for all to read; set model_ca_file")
    try:
        tls = None
        if ca is not None:
            tls = grpc.ssl_channel_credentials(
                read_public(ca, "model_ca_file"),
                read_secret(key, "model_key_file") if key else None,
                read_public(certificate, "model_certificate_file") if certificate else None,
            )
        token = settings.model_token_file
        return ModelAccess(tls, BearerToken(token, "model_token_file") if token else None)
    except FileRefusedError as error:
        raise ValueError(str(error)) from None
