#!/usr/bin/env bash
# Fuzzes every decoder that reads bytes from outside, each for the time given (default 20s).
set -eu
cd "$(dirname "$0")/../.."
grep -rho --include='*_test.go' 'func Fuzz[A-Za-z]*' . | sort -u | sed 's/func //' | while read -r name; do
  package=$(dirname "$(grep -rl --include='*_test.go' "func $name(" . | head -n 1)")
  go test "$package" -run '^$' -fuzz "^$name\$" -fuzztime "${1:-20s}"
done
