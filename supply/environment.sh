#!/bin/sh
# Make the environment of the Makefile, or bring it up to date: sh supply/environment.sh VENV PYTHON...
#
# A set-up that was broken off leaves a folder on which pip fails. VENV/.begun, with the number of this process, is in a
# folder that this script made until it is ready. So the next set-up knows such a folder from somebody's own, and makes it
# anew; while the process still works it waits for it. VENV/.ready tells that all is done.
set -eu
venv=$1
shift
begun=$venv/.begun ready=$venv/.ready

"$@" -c 'import sys; sys.exit(sys.version_info < (3, 10) and "earlybert needs Python 3.10 or newer; try make PYTHON=python3.12")'
until mkdir "$venv" 2>/dev/null && echo $$ >"$begun"; do
    maker=$(cat "$begun" 2>/dev/null) || break
    if kill -0 "$maker" 2>/dev/null; then
        echo "$venv is being set up by another make: waiting for it (process $maker)"
        while test -e "$begun" && kill -0 "$maker" 2>/dev/null; do sleep 1; done
        test ! -e "$ready" || exit 0
    else
        echo "the last set-up of $venv was broken off: it begins anew"
        rm -rf "$venv"
    fi
done
"$@" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --progress-bar off -c constraints.txt -e '.[demo,dev]'
touch "$ready"
rm -f "$begun"
