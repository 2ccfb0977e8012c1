# shellcheck shell=sh disable=SC2154 # a part of scripts/build
# docker.sh: how it speaks to docker and its registries.

# why: prints what docker said went wrong, without its warnings and hints; ssh ends lines with \r.
why() { tr -d '\r' < "$work/error" | grep -vE '^ *$|^WARNING|^Usage:|^(See|Run) ' | tail -n 1; }

# prefer_logins: lets `docker login` add to DOCKER_AUTH_CONFIG, which docker would otherwise prefer.
# One with credential helpers is left out: helpers would stop the login.
prefer_logins() {
    case ${DOCKER_AUTH_CONFIG:-} in
        '' | *'"cred'*) ;;
        *)
            export DOCKER_CONFIG="$work"
            printf '%s' "$DOCKER_AUTH_CONFIG" > "$work/config.json"
            ;;
    esac
    unset DOCKER_AUTH_CONFIG
}
