# syntax=docker/dockerfile:1
#
# The image of the daemon. Only what runs is in it:
# * the run-time part of requirements.lock, hashes and all; scripts/runtime_lock.py tells it from development's part by the lock's own
#   `# via` comments, so that there is no second lock to forget. Should it leave a package out, pip refuses (--require-hashes);
# * the project's wheel; the rule packs, under /usr/share/remediator/rules.
# No pip, no compiler and no sources are in the environment of the last stage. Nothing is written outside of /var/lib/remediator:
# run it with --read-only. tests/packaging/ carries out the RUN lines of the first stage, in this order, without an engine;
# `make test-image` builds the image itself, on a base of Debian's packages, and starts it.
#
#   docker build -t remediator .
#   docker run --read-only --cap-drop ALL -v remediator:/var/lib/remediator -v $PWD/remediator.yaml:/etc/remediator/remediator.yaml:ro remediator

# Pin it to a digest in your own builds: --build-arg BASE=python:3.13-slim-bookworm@sha256:…
ARG BASE=python:3.13-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY requirements.lock pyproject.toml ./
COPY scripts/runtime_lock.py scripts/runtime_lock.py
RUN python scripts/runtime_lock.py > runtime.lock && python scripts/runtime_lock.py setuptools > build.lock
RUN python -m venv tools
RUN tools/bin/pip install --quiet --require-hashes --only-binary :all: -r build.lock
RUN python -m venv --without-pip /opt/remediator
RUN tools/bin/pip --python /opt/remediator/bin/python install --quiet --require-hashes --only-binary :all: -r runtime.lock
COPY README.md LICENSE ./
COPY remediator remediator
COPY actions actions
COPY rules rules
RUN tools/bin/pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist .
RUN tools/bin/pip --python /opt/remediator/bin/python install --quiet --no-deps --no-index --compile dist/*.whl

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="remediator" \
      org.opencontainers.image.description="Carries out incident runbooks by itself, carefully." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/remediator /opt/remediator
COPY --from=build /src/rules /usr/share/remediator/rules
# The state's directory belongs to the user, so that a new volume mounted there does too. Everything else belongs to root.
RUN install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/remediator
# The default of listen.host, 127.0.0.1, would be this container alone; the variable wins over the settings file.
ENV PATH=/opt/remediator/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONNOUSERSITE=1 \
    REMEDIATOR_CONFIG=/etc/remediator/remediator.yaml \
    REMEDIATOR_LISTEN__HOST=0.0.0.0 \
    REMEDIATOR_URL=http://127.0.0.1:9095
# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /var/lib/remediator
VOLUME /var/lib/remediator
EXPOSE 9095
# Python, since the image has no curl. It follows REMEDIATOR_URL; another port or TLS in the settings needs another value there.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(os.environ['REMEDIATOR_URL'] + '/-/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["remediator"]
CMD ["serve"]
