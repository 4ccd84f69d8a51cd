package four_eyes_test

import data.lifeboat

request := {
	"operation": "prune",
	"action": "DELETE",
	"dry_run": false,
	"environment": "staging",
	"time_seconds": 1718000000,
	"deletion": {"backups": 1, "objects": 2, "forget": []},
	"plan": {"digest": "d", "requester": "ada", "approvals": []},
}

approved := object.union(request, {"plan": {"digest": "d", "requester": "ada", "approvals": [{
	"approver": "grace",
	"kind": "key",
	"granted": "2024-06-10T06:00:00Z",
	"expires": "2024-06-10T07:00:00Z",
}]}})

test_nobody_deletes_alone_anywhere if {
	every environment in ["production", "staging", "unspecified"] {
		every operation in ["prune", "expire", "unpin"] {
			members := {"environment": environment, "operation": operation}
			answer := lifeboat.decision with input as object.union(request, members)
			not answer.allow
			some reason in answer.reasons
			contains(reason, "nobody else has approved it")
		}
	}
}

test_two_do if lifeboat.decision.allow with input as approved

test_a_plan_may_be_looked_at if lifeboat.decision.allow with input as object.union(request, {"dry_run": true})

test_the_rest_is_as_shipped if {
	lifeboat.decision.allow with input as object.union(request, {"operation": "list", "action": "READ"})
	not lifeboat.decision.allow with input as {"operation": "key-export", "action": "KEY", "environment": "production"}
}
