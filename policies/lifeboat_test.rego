# Tests of lifeboat.rego: `lifeboat policy test`, or `opa test policies`.
package lifeboat_test

import data.lifeboat

now := 1718000000

approval(name) := {"approver": name, "kind": "key", "granted": "2024-06-10T06:00:00Z", "expires": "2024-06-10T07:00:00Z"}

plan(names) := {
	"digest": "6ca13d52ca70c883e0f0bb101e425a89e8624de51db2d2392593af6a84118090",
	"requester": "ada",
	"approvals": [approval(name) | some name in names],
}

# Facts of an operation in production; 06:13:20 on that day.
facts(operation, action) := {
	"schema": 1,
	"time": "2024-06-10T06:13:20Z",
	"time_seconds": now,
	"operation": operation,
	"action": action,
	"dry_run": false,
	"actor": {"user": "ada", "uid": 1000},
	"host": "db1",
	"environment": "production",
}

backup(state) := {
	"id": "conductor-backup-20240610T060000Z",
	"name": "conductor",
	"state": state,
	"started": "2024-06-10T06:00:00Z",
	"age_seconds": 800,
	"signed_by": "abc",
}

with_members(operation, action, members) := object.union(facts(operation, action), members)

elsewhere := {"pgdata": "/tmp/here", "start": false, "production": false}

restore(target, names) := with_members("restore", "DEPLOY", {"backup": backup("healthy"), "target": target, "plan": plan(names)})

allowed(input_facts) if lifeboat.decision.allow with input as input_facts

denied(input_facts) if not lifeboat.decision.allow with input as input_facts

# ---- What everybody may.

test_reading_and_writing_are_allowed_anywhere if {
	every operation in ["list", "show", "verify", "artifact-get", "wal-fetch", "audit-list", "drill-list", "drill-show"] {
		allowed(facts(operation, "READ"))
	}
	every operation in ["backup", "wal-push", "artifact-put", "pin", "expire-undo", "replicate", "init", "alert-test"] {
		allowed(facts(operation, "WRITE"))
	}
}

test_asking_and_approving_are_allowed if {
	allowed(facts("approval-request", "APPROVE"))
	allowed(facts("approval-grant", "APPROVE"))
}

test_a_dry_run_is_allowed if {
	every name in ["restore", "prune", "key-export"] {
		allowed(with_members(name, "DEPLOY", {"dry_run": true}))
	}
}

test_what_is_not_known_is_denied if {
	answer := lifeboat.decision with input as facts("teleport", "DEPLOY")
	not answer.allow
	answer.reasons == ["no rule of the policy allows teleport (DEPLOY) in environment production"]
	denied(facts("restore", "SOMETHING"))
	denied({"operation": "restore"})
	denied({})
}

# ---- Environments.

test_elsewhere_data_may_come_and_go if {
	request := object.union(restore({"production": true, "start": true}, []), {"environment": "staging"})
	answer := lifeboat.decision with input as request
	answer.allow
	answer.reasons == {"environment staging is not protected: only production is"}
	allowed(with_members("prune", "DELETE", {"environment": "unspecified", "deletion": {"backups": 9, "forget": ["x"]}}))
	allowed(with_members("key-export", "KEY", {"environment": "unspecified"}))
}

# ---- Approvals.

test_a_restore_elsewhere_needs_one if {
	denied(restore(elsewhere, []))
	allowed(restore(elsewhere, ["grace"]))
}

test_a_restore_into_production_needs_two if {
	every target in [{"production": true}, {"start": true}, {"production": true, "start": true}] {
		denied(restore(target, []))
		denied(restore(target, ["grace"]))
		allowed(restore(target, ["grace", "linus"]))
	}
}

test_a_denial_says_what_is_missing_and_how_to_get_it if {
	answer := lifeboat.decision with input as restore({"production": true}, ["grace"])
	not answer.allow
	not answer.break_glass
	count(answer.reasons) == 1
	some reason in answer.reasons
	startswith(reason, "restore-production in environment production has 1 of 2 approvals (grace): ask with ")
	contains(reason, "lifeboat approval request restore conductor-backup-20240610T060000Z,")
	contains(reason, "lifeboat approval grant 6ca13d52")
	contains(reason, "--approved 6ca13d52")
}

test_one_person_counts_once_and_the_requester_never if {
	denied(restore({"production": true}, ["grace", "grace"]))
	denied(restore({"production": true}, ["grace", "ada"]))
}

test_an_approval_that_has_ended_does_not_count if {
	old := object.union(approval("grace"), {"expires": "2024-06-10T06:13:20Z"})
	request := object.union(restore(elsewhere, []), {"plan": {"digest": "d", "requester": "ada", "approvals": [old]}})
	denied(request)
	fresh := object.union(old, {"expires": "2024-06-10T06:13:20.5Z"})
	allowed(object.union(request, {"plan": {"digest": "d", "requester": "ada", "approvals": [fresh]}}))
}

drill(target) := with_members("drill-run", "DEPLOY", {"backup": backup("healthy"), "target": target})

test_a_drill_needs_nobody_unless_it_is_against_production if {
	allowed(drill({"production": false, "start": true}))
	denied(drill({"production": true}))
}

test_pruning_needs_one_only_for_what_is_given_up if {
	allowed(with_members("prune", "DELETE", {"deletion": {"backups": 3, "objects": 9, "forget": []}}))
	given_up := {"deletion": {"backups": 3, "objects": 9, "forget": ["conductor-backup-20240101T000000Z"]}}
	denied(with_members("prune", "DELETE", given_up))
	allowed(with_members("prune", "DELETE", object.union(given_up, {"plan": plan(["grace"])})))
	denied(facts("prune", "DELETE"))
}

test_marks_that_can_be_undone_need_nobody if {
	allowed(facts("expire", "DELETE"))
	allowed(facts("unpin", "DELETE"))
}

test_keys if {
	every operation in ["key-generate", "key-rotate", "key-revoke", "audit-resume"] {
		allowed(facts(operation, "KEY"))
	}
	denied(with_members("key-export", "KEY", {"plan": plan(["grace"])}))
	allowed(with_members("key-export", "KEY", {"plan": plan(["grace", "linus"])}))
}

test_nobody_is_sent_for_approvals_that_do_not_exist if {
	settings := object.union(lifeboat.settings, {"approvals": object.union(lifeboat.settings.approvals, {"key-rotate": 1})})
	answer := lifeboat.decision with input as facts("key-rotate", "KEY") with lifeboat.settings as settings
	not answer.allow
	some reason in answer.reasons
	contains(reason, "approvals cannot be asked for this")
}

# ---- What comes back.

damaged(target) := object.union(restore(target, ["grace"]), {"backup": backup("degraded")})

test_damaged_pages_come_back_only_on_somebodys_word if {
	answer := lifeboat.decision with input as damaged(elsewhere)
	not answer.allow
	some reason in answer.reasons
	contains(reason, "--accept-degraded")
	allowed(damaged(object.union(elsewhere, {"accept_degraded": true})))

	# Also where nobody has to approve.
	denied(object.union(damaged(elsewhere), {"environment": "staging"}))
}

test_only_a_verified_backup_comes_back if {
	denied(with_members("restore", "DEPLOY", {"target": elsewhere, "plan": plan(["grace", "linus"])}))
	denied(with_members("restore", "DEPLOY", {"target": elsewhere, "environment": "staging"}))
}

# ---- The glass.

glass(reason) := object.union(restore({"production": true}, []), {"break_glass": {"reason": reason}})

breakable := object.union(lifeboat.settings, {"break_glass": {"allowed": true, "reason_characters": 10}})

test_the_glass_holds_unless_the_settings_say_otherwise if {
	denied(glass("the data centre burns"))
}

test_a_refusal_says_that_the_glass_cannot_be_broken if {
	every request in [
		glass("the data centre burns"),
		glass(""),
		object.union(facts("teleport", "DEPLOY"), {"break_glass": {"reason": "the data centre burns"}}),
	] {
		answer := lifeboat.decision with input as request
		not answer.allow
		count(answer.reasons) == 2
		some reason in answer.reasons
		contains(reason, "does not let the glass be broken here")
	}
}

# And it is not said to whoever did not ask for it, nor where the glass broke.
test_nobody_is_told_of_glass_that_they_did_not_touch if {
	answer := lifeboat.decision with input as restore({"production": true}, [])
	not answer.allow
	count([reason | some reason in answer.reasons; contains(reason, "glass")]) == 0
}

test_a_short_reason_is_told_how_long_it_has_to_be if {
	settings := breakable
	answer := lifeboat.decision with input as glass("          x ") with lifeboat.settings as settings
	not answer.allow
	count(answer.reasons) == 2
	some reason in answer.reasons
	contains(reason, "at least 10 characters")
}

test_glass_that_does_not_help_is_told_so if {
	settings := breakable
	request := object.union(glass("the data centre burns"), {"backup": backup("degraded")})
	answer := lifeboat.decision with input as request with lifeboat.settings as settings
	not answer.allow
	count(answer.reasons) == 3
	some reason in answer.reasons
	contains(reason, "around nothing else")
}

# Said before it is used: inside `with` the embedded evaluator would look for it in the rules that it replaces.
test_the_glass_can_be_broken_with_a_reason if {
	settings := breakable
	answer := lifeboat.decision with input as glass("the data centre burns") with lifeboat.settings as settings
	answer.allow
	answer.break_glass
	count(answer.reasons) == 1
	contains(answer.reasons[0], "has 0 of 2 approvals")
	not lifeboat.decision.allow with input as glass("          x ") with lifeboat.settings as settings
}

test_broken_glass_opens_nothing_else if {
	settings := breakable
	request := object.union(glass("the data centre burns"), {"backup": backup("degraded")})
	not lifeboat.decision.allow with input as request with lifeboat.settings as settings
	unknown := object.union(facts("teleport", "DEPLOY"), {"break_glass": {"reason": "the data centre burns"}})
	not lifeboat.decision.allow with input as unknown with lifeboat.settings as settings
}

test_what_is_allowed_anyway_breaks_nothing if {
	settings := breakable
	request := object.union(restore(elsewhere, ["grace"]), {"break_glass": {"reason": "the data centre burns"}})
	answer := lifeboat.decision with input as request with lifeboat.settings as settings
	answer.allow
	not answer.break_glass
}
