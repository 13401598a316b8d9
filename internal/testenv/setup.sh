#!/usr/bin/env bash
# Fetches what the tests need beyond Go: real Kafka, PostgreSQL, PgBouncer, ClickHouse, kcat, Node clients, and the container image.
# On Debian as root it installs what is missing; elsewhere it says what it could not. Safe to run again.
#   setup.sh          everything but the image
#   setup.sh image    the container image (needs a Docker engine; starts dockerd as root where none runs)
set -u
cd "$(dirname "$0")/../.."
CACHE=$PWD/.cache
IMAGE=nexus-test/services:3 # another number wherever what goes into it changes (image/): one that is there is not made again
mkdir -p "$CACHE"

say() { printf 'setup: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }
retry() { # retry WHAT COMMAND…: five tries, the last one's error is shown
  local what=$1 n; shift
  for n in 1 2 3 4 5; do
    "$@" >"$CACHE/setup.log" 2>&1 && return 0
    say "$what failed (try $n of 5)"; sleep $((n * 3))
  done
  tail -n 20 "$CACHE/setup.log" >&2
  return 1
}
debian_root() { [ "$(id -u)" = 0 ] && have apt-get; }

packages() {
  local need=()
  have java || need+=(openjdk-17-jre-headless)
  have mvn || need+=(maven)
  have kcat || need+=(kafkacat)
  have node || need+=(nodejs)
  have npm || need+=(npm)
  python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || need+=(python3-venv)
  ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || have initdb || need+=(postgresql)
  { have pgbouncer || [ -x /usr/sbin/pgbouncer ]; } || need+=(pgbouncer)
  have clickhouse-server || need+=(clickhouse-server)
  have chromium || need+=(chromium)
  [ "${1:-}" = image ] && { have debootstrap || need+=(debootstrap); have dockerd || need+=(docker.io); }
  [ ${#need[@]} = 0 ] && return 0
  if ! debian_root; then say "not installed, and this is not Debian as root: ${need[*]}"; return 0; fi
  say "installing ${need[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # No package may start a server of its own on this machine while it is installed.
  local guard=/usr/sbin/policy-rc.d made=
  [ -e $guard ] || { printf '#!/bin/sh\nexit 101\n' >$guard; chmod +x $guard; made=1; }
  retry "apt-get update" apt-get update -qq
  retry "apt-get install" apt-get install -y -qq --no-install-recommends "${need[@]}"
  [ -n "$made" ] && rm -f $guard
  return 0
}

kafka() {
  ls "$CACHE"/kafka/libs/kafka_2.13-*.jar >/dev/null 2>&1 && return 0
  have mvn || { say "no mvn: Apache Kafka cannot be fetched"; return 0; }
  say "fetching Apache Kafka 4.1"
  rm -rf "$CACHE/kafka"
  retry "mvn" mvn -B -q -f internal/testenv/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$CACHE/kafka/part" &&
    mkdir -p "$CACHE/kafka" && mv "$CACHE/kafka/part" "$CACHE/kafka/libs"
}

clients() {
  node_packages internal/testenv/client "socket.io-client, wscat, playwright-core, typescript and the schema of AsyncAPI"
  node_packages examples/typescript "what the TypeScript example needs"
}

node_packages() { # node_packages FOLDER WHAT: as its package-lock.json says
  [ "$1/node_modules/.package-lock.json" -nt "$1/package-lock.json" ] && return 0
  have npm || { say "no npm: cannot be fetched: $2"; return 0; }
  say "fetching $2"
  # npm ci empties the folder first, through a link too: what is linked belongs to another checkout, which may be in use.
  [ -L "$1/node_modules" ] && rm "$1/node_modules"
  retry "npm ci" npm --prefix "$1" ci --no-audit --no-fund
}

chdb() { # a current ClickHouse's SQL engine, for Python
  "$CACHE/chdb/bin/python" -c 'import chdb' >/dev/null 2>&1 && return 0
  python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || { say "no python3 with venv: chdb cannot be fetched"; return 0; }
  say "fetching chdb"
  rm -rf "$CACHE/chdb"
  python3 -m venv "$CACHE/chdb" && retry "pip" "$CACHE/chdb/bin/pip" install -q --no-deps chdb-core==26.9.0
}

python_clients() { # python-socketio, whose handlers take as many arguments as they were written with, and the Python example
  python_packages python-socketio internal/testenv/client/requirements.txt
  python_packages python-example examples/python/requirements.txt
}

python_packages() { # python_packages NAME REQUIREMENTS: .cache/NAME, with just those
  local venv=$CACHE/$1
  [ "$("$venv/bin/python" -m pip freeze 2>/dev/null)" = "$(cat "$2")" ] && return 0
  python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || { say "no python3 with venv: $1 cannot be fetched"; return 0; }
  say "fetching $1"
  rm -rf "$venv"
  python3 -m venv "$venv" && retry "pip" "$venv/bin/pip" install -q --no-deps -r "$2"
}

schemathesis() { # calls every route of the OpenAPI document; beside it validators of OpenAPI and JSON Schema
  local want=internal/testenv/contract/requirements.txt venv=$CACHE/schemathesis
  "$venv/bin/schemathesis" --version >/dev/null 2>&1 && # a venv that was moved does not run
    [ "$("$venv/bin/python" -m pip freeze 2>/dev/null)" = "$(cat $want)" ] && return 0
  python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || { say "no python3 with venv: schemathesis cannot be fetched"; return 0; }
  say "fetching schemathesis"
  rm -rf "$venv"
  python3 -m venv "$venv" && retry "pip" "$venv/bin/pip" install -q --no-deps -r $want
}

engine() { # a Docker engine that answers
  docker info >/dev/null 2>&1 && return 0
  [ "$(id -u)" = 0 ] && have dockerd || { say "no Docker engine"; return 1; }
  say "starting dockerd"
  nohup dockerd >"$CACHE/dockerd.log" 2>&1 &
  echo $! >"$CACHE/dockerd.pid" # run.sh ends it
  for _ in $(seq 100); do docker info >/dev/null 2>&1 && return 0; sleep 0.2; done
  tail -n 5 "$CACHE/dockerd.log" >&2
  return 1
}

image() {
  retry "go mod download" go -C internal/testenv/containers mod download # what testenv builds the program with that starts containers
  engine || return 1
  docker image inspect $IMAGE >/dev/null 2>&1 && return 0
  if ! { debian_root && have debootstrap; }; then
    say "building the image $IMAGE (some minutes)"
    retry "docker build" docker build -q -t $IMAGE -f internal/testenv/image/Dockerfile .
    return
  fi
  local root=$CACHE/image-root
  say "making the image $IMAGE (about 90 s)"
  rm -rf "$root"
  retry "debootstrap" debootstrap --variant=minbase --include=postgresql,clickhouse-server,openjdk-17-jre-headless bookworm "$root" || return 1
  mkdir -p "$root/opt/kafka" && cp -r "$CACHE/kafka/libs" "$root/opt/kafka/libs" || return 1
  install -m 755 internal/testenv/image/run-* "$root/usr/local/bin/"
  rm -rf "$root"/var/cache/apt/archives/*.deb
  tar -C "$root" --numeric-owner --exclude='./proc/*' --exclude='./sys/*' -c . | docker import - $IMAGE >/dev/null || return 1
  rm -rf "$root"
}

packages "${1:-}"
kafka
if [ "${1:-}" = image ]; then image; else clients; chdb; python_clients; schemathesis; fi
