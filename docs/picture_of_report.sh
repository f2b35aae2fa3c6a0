#!/bin/sh
# docs/pictures/report.png: the first page of a run's report. docs/picture_of_report.sh RUN/report.html
set -eu
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1 \
    --window-size=1250,985 --screenshot=docs/pictures/report.png "file://$(realpath "$1")"
${PYTHON:-.venv/bin/python} -c 'from PIL import Image; p = "docs/pictures/report.png"; Image.open(p).convert("P", palette=1, colors=64).save(p, optimize=True)'
