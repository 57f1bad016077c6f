#!/bin/sh
# A note with the word fail-always fails every attempt and ends up parked. Of the others, every third by its number of
# words fails the first attempt and succeeds at the second.
set -eu

path=$(sed -n 's/.*"relative_path":"\([^"]*\)".*/\1/p')
note=../notes/$path
[ -f "$note" ] || exit 0 # gone again meanwhile

if grep -q fail-always "$note"; then
  echo "$path: attempt $VOLARY_ATTEMPT fails, as every attempt will" >&2
  exit 1
fi
if [ $(($(wc -w < "$note") % 3)) -eq 0 ] && [ "$VOLARY_ATTEMPT" -eq 1 ]; then
  echo "$path: the first attempt fails" >&2
  exit 1
fi
echo "$path: attempt $VOLARY_ATTEMPT succeeds" >&2
