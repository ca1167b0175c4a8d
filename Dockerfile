# A small image with the gateway and PostgreSQL's programs for the built-in mode; runs as an ordinary user.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY .sqlx .sqlx
COPY src src
COPY migrations migrations
COPY config config
COPY policies policies
COPY tests tests
RUN cargo build --release --locked --bin toolgate && strip target/release/toolgate

FROM debian:bookworm-slim
# No cluster of Debian's own: the gateway makes and starts its server itself.
RUN apt-get update \
    && apt-get install -y --no-install-recommends postgresql-common \
    && sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \
    && apt-get install -y --no-install-recommends postgresql postgresql-client ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --home-dir /var/lib/toolgate --shell /usr/sbin/nologin toolgate
COPY --from=build /build/target/release/toolgate /usr/local/bin/toolgate
COPY config /etc/toolgate/config
COPY policies /etc/toolgate/policies
USER toolgate
WORKDIR /var/lib/toolgate
ENV TOOLGATE_HOME=/var/lib/toolgate
VOLUME /var/lib/toolgate
# 8080 for agents, 8081 for operators. The shipped config listens on loopback only: mount your own that says otherwise.
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["/bin/bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8081 && printf 'GET /readyz HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["/usr/local/bin/toolgate"]
CMD ["serve", "--config", "/etc/toolgate/config/toolgate.yaml"]
