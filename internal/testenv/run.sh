#!/usr/bin/env bash
# Runs the tests: run.sh all | embedded | containers. The last line says what ran on real services and what could not.
set -u -o pipefail
cd "$(dirname "$0")/../.."
mode=${1:-all}
mkdir -p .cache
export NEXUS_TEST_REPORT=$PWD/.cache/report
: >"$NEXUS_TEST_REPORT"
# In CI a real service that is missing is a failure.
[ -n "${CI:-}" ] && [ "$mode" != embedded ] && export NEXUS_TEST_REQUIRE_REAL=1
failed=0
trap 'if [ -s .cache/dockerd.pid ]; then kill "$(cat .cache/dockerd.pid)"; rm .cache/dockerd.pid; fi' EXIT

go_test() { go test -race -timeout 12m "$@" || failed=1; }

# The suites that hold for the embedded and the distributed engines alike, on services in containers.
containers() {
  if ! internal/testenv/setup.sh image; then
    [ -n "${NEXUS_TEST_REQUIRE_REAL:-}" ] && failed=1
    echo "no containers: the image could not be made" >>"$NEXUS_TEST_REPORT"
    return
  fi
  NEXUS_TEST_SERVICES=containers NEXUS_TEST_REQUIRE_REAL=1 go_test -count=1 -p 1 \
    -run 'TestLog/kafka|TestStore/postgres|TestStats/clickhouse|TestContainers' ./internal/testenv ./pipeline ./projections/...
}

case $mode in
  all)
    internal/testenv/setup.sh
    # Where the servers cannot be installed they come from the image, so that is made first.
    { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; } || internal/testenv/setup.sh image
    # The output goes through facts, which holds docs/facts.txt against it and writes .cache/facts.md; in CI that must be the table
    # that is committed.
    go build -o .cache/facts ./internal/testenv/facts || exit 1
    go test -json -race -timeout 20m -count=1 -p 2 ./... | .cache/facts ${CI:+-check} || failed=1
    containers
    ;;
  embedded) export NEXUS_TEST_EMBEDDED=1; go_test -count=1 ./... ;;
  containers) internal/testenv/setup.sh; containers ;;
  *) echo "run.sh all | embedded | containers" >&2; exit 2 ;;
esac

ran=$(grep -v '^no ' "$NEXUS_TEST_REPORT" | sort -u | paste -sd, - | sed 's/,/, /g')
not=$(grep '^no ' "$NEXUS_TEST_REPORT" | sort -u | tr '\n' ';' | sed 's/;$//; s/;/; /g')
result=passed; [ $failed = 0 ] || result=FAILED
echo "tests $result; real: ${ran:-none}; could not run: ${not:-nothing}"
exit $failed
