#!/bin/sh
# Builds the images operator, gateway and emulator; what prevents it is one line that says what to do.
#   CONTAINER_ENGINE  docker or podman; by default the first that is found
#   BASE_IMAGE        an image with Python 3.11 or newer (python:3.13-slim)
#   REGISTRY          prefix of the names, such as registry.example.com/team
#   WHEELS=1          install from wheels made on this machine (build/wheels): no package index during the build
#   PIP_ARGS          arguments of pip during the build; BUILD_ARGS: more arguments of the engine's build
set -eu
cd "$(dirname "$0")/.."

fail() { echo "error: $1; $2" >&2; exit 1; }

engine=${CONTAINER_ENGINE:-}
if [ -z "$engine" ]; then
  for found in docker podman; do
    if command -v "$found" >/dev/null 2>&1; then engine=$found; break; fi
  done
fi
[ -n "$engine" ] || fail "there is no container engine in PATH" "install docker or podman, or set CONTAINER_ENGINE"
command -v "$engine" >/dev/null 2>&1 || fail "$engine was not found" "set CONTAINER_ENGINE to docker or podman"
"$engine" info >/dev/null 2>&1 || fail "$engine does not answer" "start it, and check with: $engine info"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
base=${BASE_IMAGE:-python:3.13-slim}
if ! "$engine" image inspect "$base" >/dev/null 2>&1; then
  echo "pulling $base"
  timeout "${PULL_TIMEOUT:-300}" "$engine" pull "$base" >/dev/null 2>&1 \
    || fail "the base image $base is neither here nor can it be pulled" \
            "check the registry, or set BASE_IMAGE to an image with Python 3.11 or newer that is here"
fi

pip_args=${PIP_ARGS:-}
if [ -n "${WHEELS:-}" ]; then
  echo "making wheels in build/wheels"
  rm -rf build/wheels
  "${PYTHON:-python3}" -m pip wheel --quiet --wheel-dir build/wheels '.[emulator]' 'hatchling>=1.27' \
    || fail "pip could not make the wheels" "is a package index reachable?"
  # The images build the project itself from source; only its dependencies come from here.
  rm -f build/wheels/retinue-*.whl
  pip_args="--no-index --find-links=/wheels $pip_args"
fi

prefix=${REGISTRY:+${REGISTRY%/}/}
for target in operator gateway emulator; do
  image="${prefix}retinue/$target:$version"
  echo "building $image"
  # shellcheck disable=SC2086 # BUILD_ARGS is a list of arguments.
  "$engine" build --file images/Dockerfile --target "$target" --tag "$image" --build-arg "BASE_IMAGE=$base" \
    --build-arg "VERSION=$version" --build-arg "PIP_ARGS=$pip_args" ${BUILD_ARGS:-} . \
    || fail "the build of $image failed" "the lines above say why; behind a proxy set PIP_ARGS or WHEELS=1"
  echo "$image $("$engine" image inspect --format '{{.Size}}' "$image" | awk '{printf "%.0f MB", $1 / 1e6}')"
done
