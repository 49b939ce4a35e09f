#!/bin/sh
# Loads the images of this version into a kind cluster, so that its nodes need no registry.
#   KIND_CLUSTER  name of the cluster (kind)
#   REGISTRY      prefix of the names, as for build.sh
set -eu
cd "$(dirname "$0")/.."

fail() { echo "error: $1; $2" >&2; exit 1; }

cluster=${KIND_CLUSTER:-kind}
command -v kind >/dev/null 2>&1 || fail "kind was not found in PATH" "install it: https://kind.sigs.k8s.io"
kind get clusters 2>/dev/null | grep -qx "$cluster" \
  || fail "there is no kind cluster $cluster" "make one with: kind create cluster --name $cluster, or set KIND_CLUSTER"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
prefix=${REGISTRY:+${REGISTRY%/}/}
for name in operator gateway emulator; do
  image="${prefix}retinue/$name:$version"
  kind load docker-image --name "$cluster" "$image" || fail "$image could not be loaded" "build it first: make images"
done
