# xrl in a container, for the CPU:
#     docker build -t xrl .
#     docker run --rm -v "$PWD:/runs" --user "$(id -u):$(id -g)" xrl doctor
#     docker run --rm -v "$PWD:/runs" --user "$(id -u):$(id -g)" xrl train --method DreamerV2 --env toy --env-id Catch-v0
# and for an NVIDIA GPU (the host needs its driver and the NVIDIA Container Toolkit):
#     docker build -t xrl:gpu --build-arg DEVICE=gpu .
#     docker run --rm --gpus all -v "$PWD:/runs" --user "$(id -u):$(id -g)" xrl:gpu doctor
FROM python:3.11-slim

# cpu: PyTorch without CUDA, some gigabytes smaller; gpu: the one from PyPI, which brings CUDA along.
ARG DEVICE=cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 HOME=/tmp

WORKDIR /opt/xrl

# The pinned versions first, without the development tools: this layer stays while only the source changes.
COPY requirements.txt ./
RUN sed '/^# development/,$d' requirements.txt > run.txt \
    && case "$DEVICE" in \
        cpu) pip install "$(grep '^torch==' run.txt)" --index-url https://download.pytorch.org/whl/cpu ;; \
        gpu) ;; \
        *) echo "DEVICE=$DEVICE is unknown; use cpu or gpu" >&2; exit 1 ;; \
    esac \
    && pip install -r run.txt

COPY setup.py README.md LICENSE ./
COPY xrl xrl
RUN pip install --no-deps .

RUN useradd --no-create-home --uid 1000 xrl && mkdir -m 1777 /runs
USER 1000
VOLUME /runs
WORKDIR /runs

ENTRYPOINT ["xrl"]
CMD ["--help"]
