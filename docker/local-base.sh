#!/usr/bin/env bash
# Makes a base image with Debian's Python where no image registry is at hand (as root, with debootstrap and docker):
#   docker/local-base.sh [IMAGE] && BASE_IMAGE=local/python make images
# SUITE names another Debian release, MIRROR another Debian mirror.
set -euo pipefail
image=${1:-local/python}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "${SUITE:-bookworm}" "$root" ${MIRROR:+"$MIRROR"}
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
tar -C "$root" -c . | docker import --change 'ENV LANG=C.UTF-8' - "$image"
