# The command on a processor, for photos mounted on /photos. The build needs a connection, the image none. docs/install.md shows its use.
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY runtime runtime
COPY training training
COPY calibration calibration
COPY export export
COPY gdposr gdposr
# More extras than none: docker build --build-arg "EXTRAS=[server]" .
ARG EXTRAS=
RUN python3 -m venv /opt/gdposr && /opt/gdposr/bin/pip install --no-cache-dir --no-compile ".${EXTRAS}"

FROM python:3.13-slim
RUN useradd --create-home --uid 1000 gdposr
COPY --from=build /opt/gdposr /opt/gdposr
ENV PATH=/opt/gdposr/bin:$PATH
USER 1000
WORKDIR /photos
ENTRYPOINT ["gdposr"]
CMD ["--help"]
