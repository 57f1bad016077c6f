#!/bin/sh
# One JSON document comes on standard input; every line on standard output is an action that happens together with the
# acknowledgement. Standard error goes to the log (`volary logs greeter`). Exit code 0 acknowledges; any other code
# throws the actions away, and the work comes again.
document=$(cat)
echo "attempt $VOLARY_ATTEMPT: $document" >&2
printf '{"report":{"greeted":"%s"}}\n' "$VOLARY_TRACE"
