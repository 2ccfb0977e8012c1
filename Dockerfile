# source       what the others take from the checkout
# environment ── test        the pipeline's test job runs in it
#            └── release     what is deployed; the default
#                  └── debug the release and tools to look around with; built by hand

# A registry mirror or GitLab's dependency proxy, with the slash at its end.
ARG IMAGE_PREFIX=

# With the modes that are given here, the same files are the same to the cache whatever umask they
# were checked out with, and a release cannot write its source.
FROM scratch AS source

COPY --chmod=644 requirements.txt /
COPY --chmod=644 test/requirements.txt /test/
COPY --chmod=644 *.py /app/
# A package needs a line of its own, and 755: COPY --chmod=755 package /app/package/


FROM ${IMAGE_PREFIX}python:3.14-slim AS environment

ARG TZ=Asia/Shanghai
ENV TZ=$TZ
WORKDIR /app

# The package index comes as a secret, pip.conf: it may hold a password, and leaves no trace in the
# image. The service cannot write bytecode, so that is made here: pip compiles the packages, and
# importing them compiles the parts of the standard library that they use.
COPY --from=source requirements.txt /app/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    set -e; \
    test -f "/usr/share/zoneinfo/$TZ" || { echo "there is no time zone '$TZ' (see TZ)"; exit 1; }; \
    export PYTHONDONTWRITEBYTECODE=1; \
    pip install --no-cache-dir --root-user-action=ignore -r requirements.txt; \
    unset PYTHONDONTWRITEBYTECODE; \
    python -c 'import http.client, tornado.httpserver, tornado.options, tornado.web'


FROM environment AS test

COPY --from=source test/requirements.txt /app/test/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-cache-dir --root-user-action=ignore -r test/requirements.txt
# scripts/test takes this Python and makes no virtual environment.
ENV TEST_PYTHON=python


FROM environment AS release

# Linked, the code is a layer of its own, pushed without pulling what it stands on. A RUN, a WORKDIR
# or a --chmod from here on would pull it all.
COPY --link --from=source app /app/
USER 10001:10001
EXPOSE 8744
# Every half second until it is healthy first, every ten seconds from then on.
HEALTHCHECK --start-period=30s --start-interval=500ms --interval=10s --timeout=3s --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8744); \
        c.request('GET', '/test'); exit(c.getresponse().status != 200)"]
CMD ["python", "server.py"]

ARG RELEASE=dev
ARG CREATED=
ARG SOURCE=
ENV SERVICE_RELEASE=$RELEASE
LABEL org.opencontainers.image.revision=$RELEASE \
      org.opencontainers.image.created=$CREATED \
      org.opencontainers.image.source=$SOURCE


FROM release AS debug

ARG DEBIAN_MIRROR=http://deb.debian.org/debian
USER root
RUN set -e; \
    find /etc/apt -name '*.list' -o -name '*.sources' | \
        xargs sed -i "s|http://deb.debian.org/debian|$DEBIAN_MIRROR|"; \
    apt-get update; \
    apt-get install -y --no-install-recommends curl less lrzsz net-tools tmux vim; \
    rm -rf /var/lib/apt/lists/*; \
    printf 'set %s\n' number fileencoding=utf-8 tabstop=4 shiftwidth=4 autoindent smartindent \
        cursorline > /etc/vim/vimrc.local
USER 10001:10001


FROM release
