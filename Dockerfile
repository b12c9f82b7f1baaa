# docker build -t beit3lib .
# docker run --rm beit3lib                                           runs the demo
# docker run --rm -p 8888:8888 --shm-size 1g beit3lib .venv/bin/jupyter lab --ip 0.0.0.0 --allow-root
#
# From the raw files to the two files of a submission: DATA has wts/ (the download), beit3.spm and beit3_base_patch16_224.pth;
# RUNS gets mine/submission.json, mine/submission_answers.json and everything else. The same command resumes.
# docker run --rm --gpus all --shm-size 8g -v DATA:/beit3lib/data:ro -v RUNS:/beit3lib/runs beit3lib make submission NAME=mine
#
# PyTorch's packages bring CUDA with them, so that the default image also uses GPUs. Another base image, with Debian's packages:
# docker build -t beit3lib --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
# docker build -t beit3lib --build-arg TORCH=cpu .                   without CUDA, 4 GB smaller
ARG BASE=python:3.12-slim
FROM ${BASE}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends make wordnet-base wordnet-sense-index \
    && (command -v python3 || apt-get install -y -qq --no-install-recommends python3 python3-venv) \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /beit3lib
COPY . .
ARG TORCH=
RUN .ci/wordnet.sh /usr/share/nltk_data && make .venv/.ready TORCH=${TORCH}
CMD ["make", "demo"]
