# syntax=docker/dockerfile:1
# The binary alone, and no shell but Debian's: docker build --tag feedmill .

FROM rust:1.95-bookworm AS build
# A version that is named here is gone from Debian's servers with the next mend of it.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libssl-dev libzstd-dev lld pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /feedmill
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/feedmill/target \
    cargo build --release --locked --bin feedmill \
 && cp target/release/feedmill /usr/local/bin/feedmill

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates curl libssl3 libzstd1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /var/lib/feedmill --create-home feedmill \
 && install --directory --owner=feedmill --mode=0700 /etc/feedmill/keys
COPY --from=build /usr/local/bin/feedmill /usr/local/bin/feedmill
USER 10001
VOLUME /var/lib/feedmill
ENV FEEDMILL_DATA=/var/lib/feedmill FEEDMILL_LISTEN=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["curl", "--fail", "--silent", "--output", "/dev/null", "http://127.0.0.1:8080/ready"]
ENTRYPOINT ["feedmill"]
