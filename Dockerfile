# docker build -t beit3lib .
# docker run --rm beit3lib                                           runs the demo
# docker run --rm -p 8888:8888 --shm-size 1g beit3lib .venv/bin/jupyter lab --ip 0.0.0.0 --allow-root
FROM python:3.12-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make wordnet-base wordnet-sense-index \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /beit3lib
COPY . .
RUN .ci/wordnet.sh /usr/share/nltk_data && make .venv/.ready
CMD ["make", "demo"]
