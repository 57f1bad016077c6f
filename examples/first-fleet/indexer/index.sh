#!/bin/sh
# A handler: one JSON document on standard input, actions on standard output, exit code 0 acknowledges.
set -eu

document=$(cat)

# The last value of a text field of the document, which has no spaces around its colons.
field() {
  printf '%s\n' "$document" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"
}

# A line without what would have to be escaped in JSON.
plain() {
  tr -d '\000-\037"\\'
}

path=$(field relative_path)
change=$(field kind)
case $path in
  *\\*)
    # A quote, a backslash or a control character in the name: that takes more of a JSON reader than sed is.
    echo "skipped a note whose name needs escapes: $path" >&2
    exit 0
    ;;
esac
note=../notes/$path

words=0
title=
if [ "$change" != invalidated ] && [ -f "$note" ]; then
  words=$(wc -w < "$note" | tr -d ' ')
  title=$(sed -n 's/^#* *\(..*\)$/\1/p; /./q' "$note" | plain | cut -c 1-120)
fi

echo "$change $path: $words words" >&2
printf '{"send":{"topic":"notes/indexed","payload":{"path":"%s","change":"%s","words":%s,"title":"%s"}}}\n' \
  "$path" "$change" "$words" "$title"
