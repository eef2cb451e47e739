# syntax=docker/dockerfile:1
# Build: the locked dependencies and the application, in a virtual environment of its own.
FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements-setup.lock requirements.lock ./
RUN python -m venv /tools \
 && /tools/bin/pip install --no-cache-dir --require-hashes -r requirements-setup.lock \
 && python -m venv --without-pip /opt/nearcast \
 && VIRTUAL_ENV=/opt/nearcast /tools/bin/uv pip install --no-cache --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY bench bench
COPY channels channels
COPY clients clients
COPY geofence geofence
COPY models models
COPY nearcast nearcast
COPY offers offers
COPY server server
RUN /tools/bin/uv build --wheel --no-build-isolation --python /tools/bin/python --out-dir /wheels . \
 && VIRTUAL_ENV=/opt/nearcast /tools/bin/uv pip install --no-cache --no-deps /wheels/*.whl

# Run: nothing but Python and that environment, as a user who owns nothing but the data directory.
FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/nearcast --create-home nearcast
COPY --from=build /opt/nearcast /opt/nearcast
ENV PATH=/opt/nearcast/bin:$PATH PYTHONUNBUFFERED=1 NEARCAST_DATA_DIR=/var/lib/nearcast
USER nearcast
WORKDIR /var/lib/nearcast
VOLUME /var/lib/nearcast
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=4s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/ready', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["nearcast"]
CMD ["serve"]
