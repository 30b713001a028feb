# One image for all commands: `docker run IMAGE train --resume` is `bin/train --resume`. bin/build makes it.

# The only place that says which Python.
ARG BASE=docker.io/library/python:3.11.15-slim-bookworm
FROM $BASE

# Which PyTorch, cpu or cuda; where packages come from. bin/python says more of both.
ARG TORCH=cuda
ARG UV_INDEX_URL

# Packages, in a layer of their own that lasts until one of these files changes. What was fetched stays outside.
WORKDIR /app
COPY bin/python bin/
COPY pyproject.toml requirements.lock requirements-triton.lock requirements-uv.lock ./
RUN --mount=type=cache,target=/root/.cache bin/python -c pass

COPY bin bin
COPY pipeline pipeline
# Whatever rights the checkout has.
RUN chmod -R a+rX bin pipeline ./*.lock && .venv/bin/python -m compileall -q pipeline

# What a new volume at these places takes its rights from. Anybody may write there, as a container may be given another
# user, that of the folder on the host into which it publishes.
RUN useradd --uid 1000 --create-home zoo && install -d -m 1777 /mnist /data
USER 1000:1000
WORKDIR /mnist

# A run's folder that the next container finds again on the same volume.
ENV OUTPUT_DIR=run
# For release.json: a commit, with `-dirty` where files were changed.
ARG CODE_REVISION
ENV CODE_REVISION=$CODE_REVISION
LABEL org.opencontainers.image.title="Triton model zoo" org.opencontainers.image.revision=$CODE_REVISION

ENTRYPOINT ["/app/bin/python", "-m", "pipeline"]
CMD ["--help"]
