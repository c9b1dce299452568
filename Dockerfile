# The backend: `web` (default) and `worker` run from this one image. See docker-compose.yml.
FROM python:3.11-slim-bookworm

RUN groupadd --gid 10001 backend \
 && useradd --uid 10001 --gid backend --home-dir /data --no-create-home --shell /usr/sbin/nologin backend \
 && mkdir /app /data \
 && chown backend:backend /data

# As in the Makefile: uv in a virtual environment, then the locked versions. pyproject.toml carries uv's overrides.
# uv itself comes in the locked version too.
WORKDIR /app
COPY requirements.txt pyproject.toml ./
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "$(grep '^uv==' requirements.txt)"

# Empty: torch as published for pip, with CUDA. cpu: without CUDA, several GB smaller. Others: `uv pip install --help`.
ARG TORCH_BACKEND=
# Bytecode is compiled here because the root file system may be read-only later; CUDA wheels are large, hence the wait.
RUN UV_COMPILE_BYTECODE=1 UV_HTTP_TIMEOUT=600 \
    /opt/venv/bin/uv pip install --no-cache --python /opt/venv/bin/python \
      ${TORCH_BACKEND:+--torch-backend "$TORCH_BACKEND"} -r requirements.txt

COPY backend backend
RUN /opt/venv/bin/python -m compileall -q backend

# TORCH_HOME: weights that torchvision downloads are kept with the data.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    HOME=/tmp \
    TORCH_HOME=/data/torch \
    DATA_DIR=/data \
    BIND=0.0.0.0:9090

USER backend
VOLUME /data
EXPOSE 9090
STOPSIGNAL SIGTERM

# For `web`; `worker` has another one in docker-compose.yml.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/health', timeout=4)"]

ENTRYPOINT ["python", "-m", "backend"]
CMD ["web"]
