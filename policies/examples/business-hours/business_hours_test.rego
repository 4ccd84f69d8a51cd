package business_hours_test

import data.lifeboat

request(operation, moment) := {
	"operation": operation,
	"action": "DELETE",
	"dry_run": false,
	"environment": "staging",
	"time_seconds": moment,
	"deletion": {"backups": 1, "objects": 2, "forget": []},
}

# 2024-06-10 is a Monday; Berlin is two hours ahead of UTC in summer, one in winter.
monday_morning := 1718002800 # 07:00:00Z

test_in_working_hours if lifeboat.decision.allow with input as request("prune", monday_morning)

test_the_first_and_the_last_second if {
	lifeboat.decision.allow with input as request("prune", 1717999200) # 06:00:00Z, 08:00 in Berlin
	not lifeboat.decision.allow with input as request("prune", 1717999199)
	lifeboat.decision.allow with input as request("prune", 1718031599) # 14:59:59Z
	not lifeboat.decision.allow with input as request("prune", 1718031600)
}

test_winter_has_other_hours if {
	lifeboat.decision.allow with input as request("prune", 1705302000) # Monday 2024-01-15T07:00:00Z, 08:00 in Berlin
	not lifeboat.decision.allow with input as request("prune", 1705301999)
}

test_on_sunday_it_waits if {
	answer := lifeboat.decision with input as request("expire", monday_morning - 86400)
	not answer.allow
	answer.reasons == {"expire can wait: it is Sunday, 9 o'clock in Europe/Berlin, and working hours are from 8 to 17 on weekdays"}
}

test_a_restore_never_waits if {
	restore := object.union(request("restore", monday_morning - 86400), {
		"action": "DEPLOY",
		"backup": {"id": "b", "state": "healthy"},
		"target": {"pgdata": "/tmp/here"},
	})
	lifeboat.decision.allow with input as restore
}
