# Makes .venv with everything installed, or does nothing when it is up to date. Sourced by demo.sh and test.sh; also
# runs alone: bash tools/setup_env.sh. Needs Python 3.11 or 3.12 with venv; PYTHON=... chooses one.

_setup_fail() {
    echo "setup: $*" >&2
    exit 1
}

_setup_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    _setup_fail "found no Python 3.11 or 3.12. Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv)," \
        "or name it: PYTHON=/path/to/python3.11 bash tools/setup_env.sh"
}

setup_env() {
    local root stamp wanted python start requirements
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    cd "$root"
    stamp=.venv/.perception-setup
    wanted="$(cat setup.cfg constraints.txt tools/setup_env.sh | sha256sum | cut -d' ' -f1) $root"
    if [ -x .venv/bin/perception ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        echo "setup: .venv is up to date"
        return
    fi
    start=$SECONDS
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        ! .venv/bin/python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        python="$(_setup_python)" || exit 1
        echo "setup: making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv ||
            _setup_fail "$python cannot make a virtual environment. Debian, Ubuntu: apt install python3-venv"
    fi
    echo "setup: installing the pinned set (constraints.txt); this takes a few minutes"
    rm -f "$stamp"
    # Byte code is compiled when a module is first imported, which is quicker than compiling every file now.
    if .venv/bin/python -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("mmcv") and u.find_spec("mmcv._ext")))' \
        2>/dev/null; then
        echo "setup: a compiled mmcv is installed and stays; mmcv-lite is left out"
        requirements="$(mktemp)"
        .venv/bin/python - >"$requirements" <<'PYTHON'
import configparser

config = configparser.ConfigParser()
config.read("setup.cfg")
lines = config["options"]["install_requires"].split() + config["options.extras_require"]["dev"].split()
print("\n".join(line for line in lines if not line.startswith("mmcv")))
PYTHON
        .venv/bin/python -m pip install --no-compile --constraint constraints.txt --requirement "$requirements" ||
            _setup_fail "pip could not install the dependencies; its message is above"
        rm -f "$requirements"
        .venv/bin/python -m pip install --no-deps --editable . ||
            _setup_fail "pip could not install this package; its message is above"
    else
        .venv/bin/python -m pip install --no-compile --constraint constraints.txt --editable '.[dev]' ||
            _setup_fail "pip could not install the dependencies; its message is above"
    fi
    # Dependencies bring two OpenCV wheels that write the same folder; the one without windows must lie on top.
    .venv/bin/python -m pip install --quiet --no-compile --no-deps --force-reinstall \
        --constraint constraints.txt opencv-python-headless ||
        _setup_fail "pip could not put opencv-python-headless on top; its message is above"
    .venv/bin/python -c 'import cv2, torch, perception, mmdet3d.structures' ||
        _setup_fail "the installed packages cannot be imported; remove .venv and run this again"
    echo "$wanted" >"$stamp"
    echo "setup: done in $((SECONDS - start)) s"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    set -euo pipefail
    setup_env
fi
