#!/usr/bin/env bash
# Prints the Python that .venv is made with: the first of these that is there, is 3.11 or newer,
# and can make a virtual environment. PYTHON_FOR_VENV names another one.
set -u
usable='import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
for python in ${PYTHON_FOR_VENV:-python3.12 python3.11 python3.13 python3.14 python3}; do
    if "$python" -c "$usable" >/dev/null 2>&1; then
        command -v "$python"
        exit 0
    fi
done
echo "make: no usable Python: one of 3.11 or newer with the venv module is needed" \
    "(on Debian and Ubuntu: apt-get install python3-venv); PYTHON_FOR_VENV=/path/to/python names one" >&2
exit 1
