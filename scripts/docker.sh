# shellcheck shell=sh disable=SC2154 # a part of scripts/build and scripts/deploy
# docker.sh: what these two do alike with docker's client.

# why: prints what docker said went wrong, without its warnings and hints; ssh ends lines with \r.
why() { tr -d '\r' < "$work/error" | grep -vE '^ *$|^WARNING|^Usage:|^(See|Run) ' | tail -n 1; }

# prefer_logins: lets `docker login` add to DOCKER_AUTH_CONFIG, often a reader's, which docker would
# prefer otherwise. docker ignores one with credential helpers, which would stop the login.
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
