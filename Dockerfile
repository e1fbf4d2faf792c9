# Two images of one recipe: what the platform runs in (the default), and a small PgBouncer for the profile of that name.
# Whatever is installed is locked with hashes; what is needed to build it stays behind.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements.txt requirements-embedded.txt ./
RUN python -m venv --without-pip /opt/ops \
    && python -m pip --python /opt/ops/bin/python install --require-hashes --only-binary :all: -r requirements.txt
# The build system's own packages, from the same locks.
RUN awk '/^[a-z]/ {keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} keep && !/^ *#/' \
        requirements-embedded.txt > build.txt \
    && python -m venv --without-pip /opt/build \
    && python -m pip --python /opt/build/bin/python install --require-hashes --only-binary :all: -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY db db
COPY migrations migrations
COPY tasks tasks
COPY worker worker
RUN /opt/build/bin/python -m hatchling build -t wheel -d /wheel \
    && python -m pip --python /opt/ops/bin/python install --no-deps --no-index /wheel/*.whl

FROM debian:bookworm-slim AS pgbouncer
RUN apt-get update \
    && apt-get install -y --no-install-recommends pgbouncer \
    && rm -rf /var/lib/apt/lists/* /etc/pgbouncer/* \
    && printf '%s\n' '[databases]' '* = host=postgres port=5432' '[pgbouncer]' 'listen_addr = *' 'listen_port = 6432' \
        'unix_socket_dir = /tmp' 'auth_type = scram-sha-256' 'auth_file = /run/secrets/pgbouncer_users' \
        'pool_mode = transaction' 'default_pool_size = 20' 'max_client_conn = 1000' \
        'server_tls_sslmode = prefer' > /etc/pgbouncer/pgbouncer.ini
LABEL org.opencontainers.image.title="AI-manage-OPS: PgBouncer" \
      org.opencontainers.image.description="PgBouncer in transaction mode in front of the compose stack's PostgreSQL" \
      org.opencontainers.image.licenses="ISC"
USER 10001:10001
EXPOSE 6432
CMD ["pgbouncer", "/etc/pgbouncer/pgbouncer.ini"]

FROM python:3.11-slim-bookworm AS ops
ARG VERSION=0.1.0
ARG REVISION=unknown
RUN groupadd --system --gid 10001 ops \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ops
COPY --from=build /opt/ops /opt/ops
ENV PATH=/opt/ops/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LANG=C.UTF-8 \
    HOME=/tmp \
    OPS_ALIVE_FILE=/tmp/ops-alive
LABEL org.opencontainers.image.title="AI-manage-OPS" \
      org.opencontainers.image.description="A job platform on PostgreSQL for people who trust Celery" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
WORKDIR /tmp
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT []
CMD ["ops", "--help"]
