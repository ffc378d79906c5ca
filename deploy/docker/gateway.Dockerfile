# The gateway. Built from the repository's root: docker build -f deploy/docker/gateway.Dockerfile -t halfreel-gateway .
FROM python:3.11.14-slim-bookworm AS builder
ENV VIRTUAL_ENV=/opt/halfreel
WORKDIR /build

# pip and the build tool stay here: an image that can install nothing is one thing less to attack.
COPY deploy/docker/requirements-build.txt deploy/docker/requirements-gateway.txt deploy/docker/
RUN python -m venv tools \
 && tools/bin/pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
      --requirement deploy/docker/requirements-build.txt \
 && python -m venv --without-pip "$VIRTUAL_ENV"
RUN tools/bin/pip --python "$VIRTUAL_ENV" install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
      --requirement deploy/docker/requirements-gateway.txt

COPY protos protos
COPY services/runtime services/runtime
COPY services/gateway services/gateway
RUN tools/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir wheels \
      ./protos ./services/runtime ./services/gateway \
 && tools/bin/pip --python "$VIRTUAL_ENV" install --no-cache-dir --no-index --no-deps wheels/*.whl
# A .pth file runs at every start of Python; none is expected here.
RUN test -z "$(find "$VIRTUAL_ENV" -name '*.pth')"

FROM python:3.11.14-slim-bookworm
LABEL org.opencontainers.image.title="halfreel-gateway" \
      org.opencontainers.image.description="The gateway of Halfreel: runs a film's production from idea to MP4" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-bookworm"
RUN groupadd --gid 10001 halfreel \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/halfreel --no-create-home --shell /usr/sbin/nologin halfreel \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/halfreel
COPY --from=builder /opt/halfreel /opt/halfreel
COPY LICENSE deploy/docker/sbom-gateway.cdx.json /usr/share/doc/halfreel/
ENV VIRTUAL_ENV=/opt/halfreel \
    PATH=/opt/halfreel/bin:$PATH \
    HOME=/var/lib/halfreel \
    PYTHONDONTWRITEBYTECODE=1 \
    HALFREEL_GATEWAY_DATA_DIR=/var/lib/halfreel \
    HALFREEL_GATEWAY_PORT=7600 \
    HALFREEL_GATEWAY_METRICS_PORT=7700
USER 10001:10001
WORKDIR /var/lib/halfreel
VOLUME ["/var/lib/halfreel"]
EXPOSE 7600 7700
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-m", "halfreel_runtime.healthcheck", "gateway"]
ENTRYPOINT ["python", "-m", "halfreel_gateway"]
