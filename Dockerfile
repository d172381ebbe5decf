# A server for one model. CPU: docker build -t unmask .
# CUDA: docker build -t unmask:cuda --build-arg TORCH_INDEX= . (torch from the usual index brings the CUDA libraries; the host needs the
# driver and the NVIDIA Container Toolkit). compose.yaml has both; docs/operate.md says how to run them.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY docs docs
COPY unmask unmask
RUN python3 -m venv /build && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/unmask
ENV PATH=/opt/unmask/bin:$PATH PYTHONUNBUFFERED=1
# Torch first: its layer stays when the source changes. Its own index holds no other packages, so they come with the wheel.
RUN pip install --no-cache-dir "torch>=2.11,<2.14" ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(ls /dist/*.whl)[serve,hub,heif]" \
    && useradd --create-home --uid 1000 unmask \
    && mkdir /models /data \
    && chown unmask /models /data
USER 1000
# Pictures that commands write go to /data. Downloads of the hub are kept in /models/hub.
WORKDIR /data
ENV HF_HUB_CACHE=/models/hub
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["unmask"]
CMD ["serve", "mini", "--host", "0.0.0.0"]
