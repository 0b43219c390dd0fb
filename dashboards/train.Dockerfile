# `monitor demo` in a container, for the profile `train` of docker-compose.yml.
FROM python:3.12-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN useradd --create-home --uid 10001 monitor && mkdir /runs && chown monitor:monitor /runs && chmod 755 /runs
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY monitor monitor
COPY examples examples
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" torch && pip install --no-cache-dir '.[page]'
USER monitor
WORKDIR /home/monitor
ENV MONITOR_ALERT_TOKEN_FILE=/run/secrets/monitor_alert_token MONITOR_READ_TOKEN_FILE=/run/secrets/monitor_read_token
ENTRYPOINT ["monitor", "demo", "--port", "9477"]
CMD ["--steps", "20000", "--exit"]
