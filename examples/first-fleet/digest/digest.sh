#!/bin/sh
# A long-lived agent: takes one message, does its work, acknowledges it, again and again. Work that comes a second time
# (a message that was not acknowledged) changes nothing, for a note has one line.
set -u

output=../output
digest=$output/digest.txt
mkdir -p "$output"
touch "$digest"

# A field of one message: $1 its name, $2 the message.
text() { printf '%s\n' "$2" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
number() { printf '%s\n' "$2" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }

while :; do
  message=$("$VOLARY_BIN" link next --wait 30s)
  case $? in
    0) ;;
    75) continue ;; # nothing came
    *) exit 1 ;;    # the node has gone, or does not want us
  esac
  id=$(printf '%s\n' "$message" | sed 's/^{"id":"\([^"]*\)".*/\1/')
  payload=${message##*\"payload\":}
  path=$(text path "$payload")

  awk -F '\t' -v path="$path" '$1 != path' "$digest" > "$output/.digest.new"
  if [ "$(text change "$payload")" != invalidated ]; then
    printf '%s\t%s words\t%s\n' "$path" "$(number words "$payload")" "$(text title "$payload")" >> "$output/.digest.new"
  fi
  sort -o "$output/.digest.new" "$output/.digest.new" && mv "$output/.digest.new" "$digest"

  echo "wrote the line of $path" >&2
  "$VOLARY_BIN" link ack "$id" || exit 1
done
