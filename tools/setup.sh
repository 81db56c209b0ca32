#!/usr/bin/env bash
# Makes a fresh checkout ready: Debian packages, .venv, and the package built and installed in it. What is done already
# is skipped, so every target calls it first.
#
#   tools/setup.sh dev|test|lint|demo|bench    make ready for that purpose
#   tools/setup.sh doc-root                    print the folder of documents that the demo serves
#
# PYTHON is the interpreter to build .venv from. Where it is too old, or has no headers or no venv, Debian's is taken.
# DOC_ROOT is another folder for the demo to serve.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'batchbridge: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null; }

# ---- What each purpose needs of Debian: the package, then a command that succeeds where it is not needed any more.

need() { "${@:2}" >/dev/null 2>&1 || missing+=("$1"); }
has_library() { # NAME VERSION HEADER; without pkg-config, which is then missing itself, the header has to do
    if have pkg-config; then pkg-config --atleast-version="$2" "$1"; else [ -e "$3" ]; fi
}

need_build() {
    need gcc have cc
    need libc6-dev test -e /usr/include/stdio.h
    need pkg-config have pkg-config
    need liburing-dev has_library liburing 2.3 /usr/include/liburing.h
    choose_python || need_debian_python
}

need_kernel() {
    compgen -G 'kernel_side/*.bpf.c' >/dev/null || return 0
    need clang have clang
    need libbpf-dev has_library libbpf 1.1 /usr/include/bpf/libbpf.h
}

need_test() { # clients that others wrote, and a compiler of native handlers
    need g++ have c++
    need curl have curl
    need wget have wget
    need wrk have wrk
    need nghttp2-client have h2load
    need httperf have httperf
    need apache2-utils have ab
    need iproute2 have ip
}

need_bench() { need iproute2 have ip; } # a namespace for each side, where root asks

need_demo() { [ -n "$(doc_root)" ] || missing+=("$(doc_package)"); }

find_missing() { # PURPOSE; fills `missing`
    missing=()
    need_build
    need_kernel
    [ "$1" != test ] || need_test
    [ "$1" != demo ] || need_demo
    [ "$1" != bench ] || need_bench
}

# ---- Python: 3.11 or later, with what compiling an extension and making a .venv take.

python_identity() { # prints, in a line, what tells one interpreter from another; or fails and says what it lacks
    "$1" -c '
import os, sys, sysconfig
if sys.version_info < (3, 11):
    sys.exit("it is older than 3.11")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit("it has no headers")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("it has no venv")
print(sys.base_prefix, sys.version.split()[0])' 2>&1 | tail -n 1
}

choose_python() { # sets `python`, `identity` and, where it is not the one asked for, `python_note`
    local asked=${PYTHON:-python3} lacks
    python=$asked python_note=
    if ! have "$asked"; then
        lacks="it is not there"
    elif identity=$(python_identity "$asked"); then
        return 0
    else
        lacks=${identity:-it does not run}
    fi
    python=/usr/bin/python3 python_note="$asked cannot be used ($lacks), so /usr/bin/python3 is"
    identity=$(python_identity /usr/bin/python3)
}

need_debian_python() {
    need python3 test -x /usr/bin/python3
    # Asked of the interpreter, not of dpkg: it is what decides.
    need python3-dev /usr/bin/python3 -c \
        'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))'
    need python3-venv /usr/bin/python3 -c 'import ensurepip, venv'
    # Nothing to install helps against an old one.
    [ "${#missing[@]}" -gt 0 ] || die "no usable Python: $python_note, and that one fails too: $identity."
}

# ---- The demo's documents: a few thousand real files that every Debian has.

doc_root() {
    local folder newest=
    if [ -n "${DOC_ROOT:-}" ]; then
        newest=$DOC_ROOT
    else
        for folder in $(compgen -G '/usr/share/doc/libstdc++-*-doc/libstdc++' | sort -V); do
            # A system that leaves documentation out on installing has the package and no files.
            [ ! -e "$folder/index.html" ] || newest=$folder
        done
    fi
    [ -z "$newest" ] || readlink -f "$newest"
}

doc_package() {
    local found pattern='^libstdc\+\+-[0-9]+-doc$'
    found=$(apt-cache search --names-only "$pattern" 2>/dev/null | cut -d' ' -f1 | sort -V | tail -n 1) || true
    # Before the first `apt-get update` no list is there; the compiler's version is the documentation's.
    [ -n "$found" ] || found="libstdc++-$(cc -dumpversion 2>/dev/null | cut -d. -f1 | grep . || echo 12)-doc"
    echo "$found"
}

# ---- The steps.

install_packages() { # PURPOSE
    find_missing "$1"
    [ "${#missing[@]}" -gt 0 ] || return 0
    have apt-get || die "missing, by Debian's names: ${missing[*]}; install them, then run \"make $1\" again."
    [ "$(id -u)" = 0 ] ||
        die "missing Debian packages: run \"apt-get install ${missing[*]}\" as root, then \"make $1\" again."
    export DEBIAN_FRONTEND=noninteractive
    # A source of the machine's that fails need not be one of Debian's.
    apt-get update -q </dev/null >&2 || say "not every list of packages could be fetched; going on with what is there."
    find_missing "$1"
    say "installing ${missing[*]}"
    # Without recommended packages, so that no service comes along. The files that the demo serves are asked for also
    # where the system leaves documentation out, and again where it has left them out before.
    apt-get install -y -q --no-install-recommends --reinstall -o DPkg::Lock::Timeout=120 \
        -o DPkg::Options::='--path-include=/usr/share/doc/libstdc++-*-doc' \
        -o DPkg::Options::='--path-include=/usr/share/doc/gcc-*-base/libstdc++/*' \
        "${missing[@]}" </dev/null >&2
    find_missing "$1"
    [ "${#missing[@]}" = 0 ] || die "still missing after the installation: ${missing[*]}."
}

make_venv() {
    local made_for="$PWD $identity"
    [ "$(cat .venv/made-for 2>/dev/null)" != "$made_for" ] || return 0
    [ -z "$python_note" ] || say "$python_note"
    say "making .venv with $python ($identity)"
    # The build folder remembers the interpreter and the tools of the .venv it was made with.
    rm -rf .venv build
    "$python" -m venv .venv
    # `python -P -m bench.demo` finds the checkout after the installed package, which alone has the compiled modules.
    echo "$PWD" >"$(venv_python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/batchbridge-checkout.pth"
    echo "$made_for" >.venv/made-for
}

venv_python() { .venv/bin/python "$@"; }
install() { venv_python -m pip install -qq "$@" </dev/null >&2; }

newer_than() { # STAMP PATH…; also true where there is no stamp. Folders count, so that a deleted file is noticed.
    [ ! -e "$1" ] || [ -n "$(find "${@:2}" -name __pycache__ -prune -o -newer "$1" -print -quit 2>/dev/null)" ]
}

install_build_tools() {
    newer_than .venv/done-tools pyproject.toml || return 0
    local -a tools
    mapfile -t tools < <(venv_python -c '
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")')
    say "installing the build tools"
    install "${tools[@]}"
    touch .venv/done-tools
}

install_package() { # EXTRA, or nothing
    local stamp=.venv/done-package extra=${1:-}
    if newer_than "$stamp" pyproject.toml meson.build README.md LICENSE batchbridge cython_ext kernel_side ||
        { [ -n "$extra" ] && newer_than ".venv/done-$extra" pyproject.toml; }; then
        say "building and installing${extra:+, with what \"$extra\" needs}"
        # What changes while it builds is newer than the stamp.
        touch .venv/started
        PATH="$PWD/.venv/bin:$PATH" install --no-build-isolation --config-settings=build-dir=build ".${extra:+[$extra]}"
        [ -z "$extra" ] || cp -p .venv/started ".venv/done-$extra"
        mv .venv/started "$stamp"
    fi
}

[ -d "${DOC_ROOT:-.}" ] || die "DOC_ROOT is not a folder: $DOC_ROOT"
case ${1:-} in
    doc-root) doc_root; exit ;;
    dev) extra= ;;
    test | lint) extra=$1 ;;
    demo | bench) extra=plot ;;
    *) die "usage: tools/setup.sh dev|test|lint|demo|bench|doc-root" ;;
esac
install_packages "$1"
make_venv
install_build_tools
install_package "$extra"
