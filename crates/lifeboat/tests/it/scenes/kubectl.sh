#!/bin/bash
# Stands in for kubectl where there is no cluster: what the real one can do by itself it does; what would be applied is held against the
# schemas of Kubernetes, and named as a cluster would name what it makes. A Job is done at once,
# and its log is of one that asked for approvals.
set -euo pipefail
apply() { "$PYTHON" "$SCENES/../manifests.py" "$KUBERNETES" - | "$PYTHON" -c '
import json, sys
for line in sys.stdin:
    document = json.loads(line)
    group = document["apiVersion"].rpartition("/")[0]
    kind = document["kind"].lower() + ("." + group if group else "")
    print(f"{kind}/" + document["metadata"]["name"], "created")
'; }
case $1 in
create | kustomize) exec /usr/bin/kubectl "$@" ;;
apply)
    case $2 in
    -k) /usr/bin/kubectl kustomize "$3" | apply ;;
    -f) apply ;;
    esac
    ;;
wait) echo "job.batch/${*: -1} condition met" | sed 's|/job/|/|' ;;
logs)
    printf 'asked for approvals of plan %064d\n  until 2026-03-16T02:10:00Z; others type\n' 7
    ;;
*)
    echo "kubectl: $1 cannot be done here" >&2
    exit 1
    ;;
esac
