# The language-model server, on CPUs. Built from the repository's root:
# docker build -f deploy/docker/llm.Dockerfile --build-arg TORCH_INDEX_URL=... -t halfreel-llm .
# TORCH_INDEX_URL is the index of torch's CPU builds: the default index has builds for CUDA alone.
FROM python:3.11.14-slim-bookworm AS builder
ENV VIRTUAL_ENV=/opt/halfreel
WORKDIR /build

# pip and the build tool stay here: an image that can install nothing is one thing less to attack.
COPY deploy/docker/requirements-build.txt deploy/docker/requirements-llm.txt deploy/docker/
RUN python -m venv tools \
 && tools/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
      --requirement deploy/docker/requirements-build.txt \
 && python -m venv --without-pip "$VIRTUAL_ENV"
# torch first, by itself and by its exact version: any looser pin would bring gigabytes of CUDA packages.
ARG TORCH_INDEX_URL=""
RUN tools/bin/pip --python "$VIRTUAL_ENV" install --no-cache-dir --no-deps --only-binary :all: \
      ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch==2.13.0
RUN tools/bin/pip --python "$VIRTUAL_ENV" install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
      --requirement deploy/docker/requirements-llm.txt
RUN "$VIRTUAL_ENV/bin/python" -c "from torch.version import cuda; \
      assert not cuda, f'this torch is for CUDA {cuda}: give TORCH_INDEX_URL of the CPU builds'"

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
LABEL org.opencontainers.image.title="halfreel-llm" \
      org.opencontainers.image.description="The language-model server of Halfreel, on CPUs" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-bookworm"
RUN groupadd --gid 10001 halfreel \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/halfreel --no-create-home --shell /usr/sbin/nologin halfreel \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/halfreel
COPY --from=builder /opt/halfreel /opt/halfreel
COPY LICENSE deploy/docker/sbom-llm.cdx.json /usr/share/doc/halfreel/
ENV VIRTUAL_ENV=/opt/halfreel \
    PATH=/opt/halfreel/bin:$PATH \
    HOME=/var/lib/halfreel \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_CACHE=/models \
    HALFREEL_LLM_PORT=7601 \
    HALFREEL_LLM_METRICS_PORT=7701
USER 10001:10001
WORKDIR /var/lib/halfreel
VOLUME ["/var/lib/halfreel"]
EXPOSE 7601 7701
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-m", "halfreel_runtime.healthcheck", "llm"]
ENTRYPOINT ["python", "-m", "halfreel_llm"]
