# The language-model server, on an NVIDIA GPU. Built from the repository's root:
# docker build -f deploy/docker/llm-cuda.Dockerfile -t halfreel-llm-cuda .
FROM python:3.11.14-slim-bookworm AS builder
ENV VIRTUAL_ENV=/opt/halfreel
WORKDIR /build

# pip and the build tool stay here: an image that can install nothing is one thing less to attack.
COPY deploy/docker/requirements-build.txt deploy/docker/requirements-llm.txt \
     deploy/docker/requirements-cuda.txt deploy/docker/
RUN python -m venv tools \
 && tools/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
      --requirement deploy/docker/requirements-build.txt \
 && python -m venv --without-pip "$VIRTUAL_ENV"
# torch first, by itself and by its exact version; what it brings for CUDA is in a lock of its own.
RUN tools/bin/pip --python "$VIRTUAL_ENV" install --no-cache-dir --no-deps --only-binary :all: torch==2.13.0
RUN tools/bin/pip --python "$VIRTUAL_ENV" install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
      --requirement deploy/docker/requirements-cuda.txt \
      --requirement deploy/docker/requirements-llm.txt

COPY protos protos
COPY models/pocket models/pocket
COPY services/runtime services/runtime
COPY services/llm services/llm
RUN tools/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir wheels \
      ./protos ./models/pocket ./services/runtime ./services/llm \
 && tools/bin/pip --python "$VIRTUAL_ENV" install --no-cache-dir --no-index --no-deps wheels/*.whl
# A .pth file runs at every start of Python; one is expected, that of setuptools, which torch asks for.
RUN test -z "$(find "$VIRTUAL_ENV" -name '*.pth' ! -name distutils-precedence.pth)"

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="halfreel-llm-cuda" \
      org.opencontainers.image.description="The language-model server of Halfreel, on an NVIDIA GPU" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-bookworm"
# torch.compile and Triton compile their kernels' launchers when they run.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++=4:12.2.0-3 \
 && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 halfreel \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/halfreel --no-create-home --shell /usr/sbin/nologin halfreel \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/halfreel /var/cache/halfreel
COPY --from=builder /opt/halfreel /opt/halfreel
COPY LICENSE deploy/docker/sbom-llm-cuda.cdx.json /usr/share/doc/halfreel/
# Compiled kernels are code that is loaded again: their folder is the server's own alone.
ENV VIRTUAL_ENV=/opt/halfreel \
    PATH=/opt/halfreel/bin:$PATH \
    HOME=/var/lib/halfreel \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_CACHE=/models \
    TRITON_CACHE_DIR=/var/cache/halfreel/triton \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HALFREEL_LLM_PORT=7601 \
    HALFREEL_LLM_METRICS_PORT=7701
USER 10001:10001
WORKDIR /var/lib/halfreel
VOLUME ["/var/lib/halfreel", "/var/cache/halfreel"]
EXPOSE 7601 7701
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
  CMD ["python", "-m", "halfreel_runtime.healthcheck", "llm"]
ENTRYPOINT ["python", "-m", "halfreel_llm"]
