# requirements, scripts, source   what the others take from the checkout
# environment           Python and what the service needs
# ├── release           what is deployed; the default
# │   └── debug         with tools to look around; built by hand
# ├── test              the job `test` runs in it; what the tests need comes from test-packages
# └── deploy            the job `deploy` runs in it; it also goes back, on the host

# A registry mirror or GitLab's dependency proxy, with the slash at its end.
ARG IMAGE_PREFIX=

# Modes given here keep the cache independent of the checkout's umask, and the source unwritable.
# The code has a stage of its own, or else each change of it would leave a note in the test image,
# which is the cache as well.
FROM scratch AS requirements

COPY --chmod=644 requirements.txt /
COPY --chmod=644 test/requirements.txt /test/
COPY --chmod=644 scripts/parts/requirements.txt /scripts/parts/


FROM scratch AS scripts

COPY --chmod=644 scripts/parts/*.py /scripts/parts/
COPY --chmod=755 scripts/deploy /scripts/


FROM scratch AS source

COPY --chmod=644 *.py /app/
# A directory needs a line of its own, and 755: COPY --chmod=755 package /app/package/


FROM ${IMAGE_PREFIX}python:3.14-slim AS base


FROM base AS environment

ARG TZ=Asia/Shanghai
ENV TZ=$TZ
WORKDIR /app
RUN test -f "/usr/share/zoneinfo/$TZ" || { echo "there is no time zone '$TZ' (see TZ)"; exit 1; }

# The package index comes as a secret, since it may hold a password: no trace stays in the image.
# The service cannot write bytecode, so pip compiles the packages here, and importing them compiles
# what they use of the standard library.
COPY --from=requirements requirements.txt /app/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    PYTHONDONTWRITEBYTECODE=1 \
        pip install --no-cache-dir --root-user-action=ignore -r requirements.txt && \
    python -c 'import http.client, tornado.httpserver, tornado.options, tornado.web'


# A stage of its own: a package added for the service installs none of these again.
FROM base AS test-packages

COPY --from=requirements test/requirements.txt /test/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    pip install --no-cache-dir --root-user-action=ignore \
        --target=/test/packages -r /test/requirements.txt


FROM environment AS test

# Python looks there last: where both need a package, the tests see the service's version of it. As
# a directory of packages, not a mere path, it may hold .pth files, and coverage's is needed.
RUN packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
    echo 'import site; site.addsitedir("/test/packages")' > "$packages/test.pth"
COPY --link --from=test-packages /test/packages /test/packages/
# scripts/test takes this Python and makes no virtual environment.
ENV TEST_PYTHON=python PATH=$PATH:/test/packages/bin


FROM ${IMAGE_PREFIX}docker:29.7.2-cli AS docker


FROM environment AS deploy

# scripts/build gives a value if DEPLOY_HOST begins with ssh://.
ARG DEPLOY_SSH=
ARG DEBIAN_MIRROR=http://deb.debian.org/debian
COPY --from=requirements scripts/parts/requirements.txt /app/scripts/parts/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    set -e; \
    pip install --no-cache-dir --root-user-action=ignore -r scripts/parts/requirements.txt; \
    [ -n "$DEPLOY_SSH" ] || exit 0; \
    find /etc/apt \( -name '*.list' -o -name '*.sources' \) \
        -exec sed -i "s|http://deb.debian.org/debian|$DEBIAN_MIRROR|" {} +; \
    apt-get update; \
    apt-get install -y --no-install-recommends openssh-client; \
    rm -rf /var/lib/apt/lists/*
# The client is one file, in one of these places. A pattern may match nothing.
COPY --link --from=docker /usr/local/bin/docke[r] /usr/bin/docke[r] /usr/local/bin/
COPY --link --from=scripts scripts /app/scripts/


FROM environment AS release

# Linked, the code is a layer of its own, pushed without pulling the layers below. A RUN, WORKDIR or
# --chmod from here on would pull them all.
COPY --link --from=source app /app/
USER 10001:10001
EXPOSE 8744
HEALTHCHECK --start-period=30s --start-interval=0.5s --interval=10s --timeout=3s --retries=3 \
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
USER 0
RUN set -e; \
    find /etc/apt \( -name '*.list' -o -name '*.sources' \) \
        -exec sed -i "s|http://deb.debian.org/debian|$DEBIAN_MIRROR|" {} +; \
    apt-get update; \
    apt-get install -y --no-install-recommends curl less lrzsz net-tools tmux vim; \
    rm -rf /var/lib/apt/lists/*; \
    printf 'set %s\n' number fileencoding=utf-8 tabstop=4 shiftwidth=4 autoindent smartindent \
        cursorline > /etc/vim/vimrc.local
USER 10001:10001


FROM release
