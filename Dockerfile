# The two commands of the README, on a CPU:
#   docker build -t maskco-fast .
#   docker run --rm maskco-fast              # make train
#   docker run --rm maskco-fast make test
FROM python:3.12-slim-bookworm

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home maskco
USER maskco
WORKDIR /home/maskco/maskco-fast

# Torch's build for CPUs, a tenth of the size of the one with CUDA.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu PIP_NO_CACHE_DIR=1

COPY --chown=maskco pyproject.toml Makefile README.md LICENSE ./
COPY --chown=maskco kernels kernels/
COPY --chown=maskco loaders loaders/
COPY --chown=maskco maskco_fast maskco_fast/
RUN make install

# What `make test` reads besides.
COPY --chown=maskco CHANGELOG.md CITATION.cff CONTRIBUTING.md Dockerfile .dockerignore .gitignore ./
COPY --chown=maskco .ci .ci/
COPY --chown=maskco .github .github/
COPY --chown=maskco benchmarks benchmarks/
COPY --chown=maskco docs docs/
COPY --chown=maskco tests tests/

CMD ["make", "train"]
