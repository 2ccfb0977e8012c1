# shellcheck shell=sh disable=SC2034,SC2086,SC2154 # a part of scripts/deploy; lists are split
# swarm.sh: the functions with which scripts/deploy reaches Docker and works with a stack in Swarm.

label=com.docker.stack.namespace # Swarm's own, of all that belongs to a stack

# try COMMAND...: runs a command up to four times, because calls fail while Swarm elects a leader.
try() {
    for pause in 1 2 3 0; do
        "$@" > "$work/output" 2> "$work/error" && return
        in_time || break
        sleep "$pause"
    done
    return 1
}

# ask ARGUMENT...: prints docker's answer, or ends. A call that fails is no empty answer.
ask() {
    try docker "$@" || die "$engine: $(why)"
    cat "$work/output"
}

# on_all KIND FILTER COMMAND...: runs a command on all objects of a kind, such as service.
on_all() {
    kind=$1 filter=$2
    shift 2
    found=$(docker "$kind" ls --quiet $filter) || return
    [ -z "$found" ] || docker "$kind" "$@" $found
}

# inspect_all KIND FORMAT [FILTER]: prints all objects of a kind in that format.
inspect_all() {
    try on_all "$1" "${3:-}" inspect --format "$2" || die "$engine: $(why)"
    cat "$work/output"
}

# probe ARGUMENT...: runs scripts/probe.py in the network of the engine's host, prints its answer.
probe() {
    set -- -c "$(cat scripts/probe.py)" "$@"
    set -- --network host --no-healthcheck --entrypoint python "$image" "$@"
    try docker run --rm "$@" || die "cannot run $image on the host: $(why)"
    cat "$work/output"
}

# --- The engine

# use_key: gives ssh a copy of the key, because it refuses a file that others may read, as GitLab's.
use_key() {
    ssh=$(command -v ssh) || die "ssh is not installed (install openssh-client)"
    (umask 077 && tr -d '\r' < "$DEPLOY_SSH_KEY" > "$work/key" && echo >> "$work/key")
    printf '%s\n' "IdentityFile $work/key" 'IdentitiesOnly yes' 'BatchMode yes' \
        "UserKnownHostsFile \"$DEPLOY_SSH_KNOWN_HOSTS\"" 'StrictHostKeyChecking yes' \
        'ControlMaster auto' "ControlPath $work/control" 'ControlPersist 15' > "$work/ssh_config"
    printf '#!/bin/sh\nexec %s -F %s "$@"\n' "$ssh" "$work/ssh_config" > "$work/ssh"
    chmod +x "$work/ssh"
    PATH=$work:$PATH # docker calls ssh
}

# find_engine: fails unless the engine manages a swarm; sets $nodes to the number of ready nodes.
find_engine() {
    [ -z "${DEPLOY_HOST:-}" ] || export DOCKER_HOST="$DEPLOY_HOST"
    [ -z "${DEPLOY_SSH_KEY:-}" ] || use_key
    engine="the engine at ${DOCKER_HOST:-the local socket}"
    try docker node ls --format '{{.Status}} {{.Availability}}' ||
        die "$engine: $(why) (scripts/register-runner prepares a host; DEPLOY_HOST names another)"
    nodes=$(grep -c '^Ready Active' "$work/output") ||
        die "$engine: no node of the swarm is ready (docker node ls)"
}

# log_in: lets the engine pull. A deploy token comes first, since it outlives the job.
log_in() {
    user=${CI_DEPLOY_USER:-${CI_REGISTRY_USER:-}}
    password=${CI_DEPLOY_PASSWORD:-${CI_REGISTRY_PASSWORD:-}}
    [ -n "$password" ] && [ -n "${CI_REGISTRY:-}" ] || return 0
    prefer_logins
    try send_password || die "cannot log in to $CI_REGISTRY as $user: $(why)"
}
send_password() {
    printf '%s' "$password" | docker login --username "$user" --password-stdin "$CI_REGISTRY"
}

# --- The stack

# look: asks Swarm for the $services of the stack, "name running/wanted", for their $states, and for
# the $deployment, the project ($owner) and the $ports of `server`.
state='{{.Spec.Name}}|{{index .Spec.Labels "deployment"}}|{{index .Spec.Labels "project"}}|{{
    range .Endpoint.Ports}}{{.PublishedPort}} {{end}}|{{
    with .UpdateStatus}}{{.State}}{{end}}|{{
    if ne (index .Spec.Labels "com.docker.stack.image") .Spec.TaskTemplate.ContainerSpec.Image
    }}by hand{{end}}'
look() {
    deployment=unknown states=''
    services=$(docker service ls "$of_stack" --format '{{.Name}} {{.Replicas}}') || return
    names=$(echo "$services" | cut -d ' ' -f 1)
    states=$([ -z "$names" ] || docker service inspect --format "$state" $names) || return
    server=$(echo "$states" | grep "^${stack}_server|") || true
    # No `read`: BusyBox's never returns after a signal.
    deployment=$(echo "$server" | cut -d '|' -f 2)
    owner=$(echo "$server" | cut -d '|' -f 3)
    ports=$(echo "$server" | cut -d '|' -f 4)
}

# have_replicas: succeeds if each service has its replicas, all as they are declared now, and each
# job, such as a migration, has ended well. docker's own progress bar uses this filter.
have_replicas() {
    look 2> "$work/error" && [ -n "$names" ] || return 1
    case $states in *'|updating|'* | *'|rollback'* | *'|paused|'*) return 1 ;; esac
    set -- --filter _up-to-date=true --format '{{.Name}} {{.CurrentState}}'
    running=$(docker service ps "$@" $names 2> "$work/error") || return 1
    printf '%s\n' "$running" "$services" | awk '
        $2 == "Running" { sub(/\.[^.]*$/, "", $1); running[$1]++; next }
        $3 ~ /^\([0-9]/ { split(substr($3, 2), jobs, "/"); missing += jobs[1] < jobs[2]; next }
        $2 ~ /^[0-9]/ { split($2, n, "/"); missing += running[$1] < n[2] || n[1] < n[2] }
        END { exit missing > 0 }'
}

# replicas_stay: succeeds if the replicas of a new service have run for two seconds. One that
# crashes after its start runs for a moment, each time. Swarm watches updates itself (`monitor`).
replicas_stay() {
    have_replicas || { since='' && return 1; }
    echo "$names" | grep -v '_migration$' | grep -qvxF "$names_before" || return 0
    : "${since:=$(date +%s)}"
    [ "$(date +%s)" -gt $((since + 2)) ]
}

# troubles: prints "state|name|id|error" of each task that this deployment has started and that does
# not run; those that have ended come first. A server that did not become healthy is Complete, as it
# ends in order. A task may wait until its node lets go of the network of a stack just removed.
ended='^(Complete|Failed|Rejected)'
troubles() {
    set -- --no-trunc --format '{{.CurrentState}}|{{.Name}}|{{.ID}}|{{.Error}}'
    docker service ps "$@" $names 2> /dev/null |
        grep -vE '^(Running|Complete.*_migration\.|.*Pool overlaps with other one)' |
        grep -vF "${tasks_before:-none}" |
        sed -E "s/$ended/0&/" | sort | sed 's/^0//'
}

# show_trouble: prints the last lines of a task that failed, or else of one that is not ready.
show_trouble() {
    troubles | head -n 1 | while IFS='|' read -r state name task error; do
        case $error in *'(137)'*) error="$error, killed (does it need more memory?)" ;; esac
        echo "    $name: $state: ${error:-not healthy}; its last lines:"
        timeout 10 docker service logs --raw --tail 20 "$task" 2>&1 | sed 's/^/    | /'
    done
}

# apply FILE OPTION...: gives Swarm a rendered stack, with the id of this deployment. Each $ in it
# stands for itself.
apply() {
    mark="s/^        deployment: '@'\$/        deployment: $id/"
    sed -e 's/\$/$$/g' -e "$mark" "$1" > "$work/stack.yml"
    shift
    # docker keeps an image that was changed by hand while this label names the declared one.
    for name in $(echo "$states" | sed -n 's/|.*|by hand$//p'); do
        try docker service update --detach --quiet --label-rm com.docker.stack.image "$name"
    done
    set -- "$@" --detach=true --with-registry-auth --resolve-image never
    try docker stack deploy "$@" --compose-file "$work/stack.yml" "$stack"
}

# part CLASSES: prints the rendered stack with the services of these classes only: `migration` is
# the one of that name, `release` those with the image of the release, `other` the rest.
part() {
    # docker has read the list of variables, a file that ends with this job.
    sed "s|^      - $SERVICE_VARIABLES\$|      - /dev/null|" "$work/config" |
        awk -v classes="$1" -v image="    image: $image" '
            function end() {
                class = name == "  migration:" ? "migration" : released ? "release" : "other"
                if (index(classes, class)) printf "%s", text
                text = name = ""
                released = 0
            }
            /^[^ ]/ { end(); inside = $0 == "services:" }
            !inside || $0 == "services:" { print; next }
            /^  [^ ]/ { end(); name = $0 }
            { text = text $0 "\n" }
            $0 == image { released = 1 }
            END { end() }'
}

has() { [ "$(part "$1")" != "$(part none)" ]; }

# free_port FIRST-LAST: prints a port of the range that is free.
free_port() {
    format='{{range .Endpoint.Ports}}{{.PublishedPort}} the service {{println $.Spec.Name}}{{end}}'
    used=$(inspect_all service "$format") || exit
    subnets=$([ "$DEPLOY_PUBLISH_MODE" = host ] ||
        inspect_all network '{{range .IPAM.Config}}{{.Subnet}} {{end}}' '--filter=name=^ingress$')
    free=$(probe port "$1" "$release" "$used" "$subnets") || exit
    case $free in *[!0-9]*) die "$free" ;; esac
    echo "$free"
}

# remove_stack STACK: removes it, and waits until its containers have freed their port and network.
remove_stack() {
    deadline=$(($(date +%s) + 15))
    for kind in service config secret network; do
        try on_all "$kind" "--filter=label=$label=$1" rm ||
            die "cannot remove the stack $1: $(why)"
        [ "$kind" != service ] || until no_tasks "$1" || ! in_time; do sleep 0.5; done
    done
}
no_tasks() { docker stack ps --quiet "$1" 2>&1 | grep -q '^nothing found'; }

# --- The records. Each verified deployment leaves one: a Swarm config named STACK.NUMBER that holds
# --- the whole stack as it was deployed.

# list_records FILTER: prints the names of the records, the newest first.
list_records() {
    found=$(ask config ls --filter label=project "$1" --format '{{.Name}}') || exit
    echo "$found" | sort -t . -k 2nr
}
read_record() { ask config inspect --format '{{printf "%s" .Spec.Data}}' "$1"; }

# recall FILE: sets $image, $release and $url to those of a record.
recall() {
    image=$(sed -n 's/^# image //p' "$1")
    release=$(sed -n 's/^# release //p' "$1")
    url=$(sed -n 's/^# url //p' "$1")
}

# remember: leaves a record of what was verified, unless the newest one says the same.
remember() {
    {
        printf '# %s\n' "image $image" "release $release" "url $url"
        sed '/^    name: /{n;s/^    file: .*/    external: true/;}' "$work/plan"
    } > "$work/record"
    [ "$(cat "$work/record")" != "$(cat "$work/verified")" ] || return 0
    all=$(list_records --filter=label=project)
    last=$(echo "$all" | sed -n 1p)
    set -- --label "$label=$stack" --label "project=${image%@*}"
    [ "$DEPLOY_STRATEGY" = replace ] || set -- "$@" --label "beside=$DEPLOY_STACK"
    try docker config create "$@" "$stack.$((${last##*.} + 1))" "$work/record" ||
        grep -q 'already exists' "$work/error" ||
        fail "cannot leave a record of the release: $(why)"
}

# forget RECORD
forget() {
    try docker config rm "$1" || grep -q 'not found' "$work/error" ||
        fail "cannot remove the record $1: $(why)"
}

# remove_secrets: reads all records into $named, and removes the stack's secrets that none names.
remove_secrets() {
    project=--filter=label=project=${image%@*}
    named=$(inspect_all config '{{printf "%s" .Spec.Data}}' "$project") || return
    for secret in $(ask secret ls "$of_stack" --format '{{.Name}}'); do
        case $named in *"name: $secret"*) ;; *) docker secret rm "$secret" > /dev/null ;; esac
    done
}

# clean_up: removes what none of the releases needs that are kept.
clean_up() {
    older() { tail -n +$((DEPLOY_KEEP + 1)); }
    if [ "$DEPLOY_STRATEGY" = beside ]; then
        # A stack has a record for each change of its settings, so a name may come several times.
        stacks=$(list_records "--filter=label=beside=$DEPLOY_STACK" | sed 's/\.[0-9]*$//')
        for old in $(echo "$stacks" | awk '!seen[$0]++' | older); do
            remove_stack "$old"
        done
    fi
    list_records "$of_stack" | older | xargs -r docker config rm > /dev/null
    remove_secrets || return
    set -- --digests --filter "before=$image" --format '{{.Repository}}@{{.Digest}}'
    for repository in "${image%@*}" "${image%@*}/test"; do
        ask image ls "$@" "$repository"
    done | grep @sha256: | while read -r old; do
        # docker itself refuses to remove an image that a container uses.
        case $named in *"$old"*) ;; *) docker image rm "$old" ;; esac
    done > /dev/null 2>&1
}
