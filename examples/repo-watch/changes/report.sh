#!/bin/sh
# Reports what happened to which file: `volary events --json --kind agent.report` shows the reports.
set -eu
document=$(cat)
field() { printf '%s\n' "$document" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
printf '{"report":{"path":"%s","change":"%s"}}\n' "$(field relative_path)" "$(field kind)"
