FROM golang:1.26 AS build
WORKDIR /src
# The dependencies first: their layer stays as it is until go.mod or go.sum changes.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The build context holds no .git, so the version is handed in: docker build --build-arg VERSION=v0.1.0 .
ARG VERSION=
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w -X main.version=${VERSION}" -o /portcullis .

FROM scratch
# System roots for wss upstreams and https token endpoints; UPSTREAM_CA_FILE names others.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /portcullis /portcullis
# By number, so that Kubernetes can tell that it is not root (runAsNonRoot).
USER 65532:65532
EXPOSE 3000
# Asks /readyz at ADMIN_ADDR: no shell, no token, and unhealthy as soon as a drain begins.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["/portcullis", "probe"]
ENTRYPOINT ["/portcullis"]
