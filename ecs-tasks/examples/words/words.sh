#!/bin/sh
# words.sh INPUT OUTPUT_DIR: how many lines, words and bytes a text has.
# Exits 3 for what is no text: no other attempt would do better. Exits 4 while nobody may work, as told by a file.
set -eu

if [ -e "${WORDS_PAUSED:-/shared/paused}" ]; then
    echo "paused" >&2
    exit 4
fi
if ! grep -q . "$1" || ! iconv -f UTF-8 -t UTF-8 "$1" >/dev/null 2>&1; then
    echo "this is no text" >&2
    exit 3
fi
wc <"$1" >"$2/counts.txt"
