package people_test

import data.lifeboat

request(action, user, host) := {
	"operation": {"DEPLOY": "restore", "DELETE": "expire", "KEY": "key-generate", "READ": "list", "WRITE": "backup"}[action],
	"action": action,
	"dry_run": false,
	"environment": "staging",
	"actor": {"user": user, "uid": 1000},
	"host": host,
	"backup": {"id": "b", "state": "healthy"},
	"target": {"pgdata": "/tmp/here"},
}

lists := {
	"deploy": {"users": ["ada", "grace"], "hosts": ["restore-*", "db1"]},
	"delete": {"users": ["janitor"], "hosts": ["janitor.example.org"]},
	"key": {"users": ["ada"], "hosts": []},
}

allowed(facts) if lifeboat.decision.allow with input as facts with data.people as lists

test_the_listed_may if {
	allowed(request("DEPLOY", "ada", "db1"))
	allowed(request("DEPLOY", "grace", "restore-7"))
	allowed(request("DELETE", "janitor", "janitor.example.org"))
	allowed(request("KEY", "ada", "anywhere"))
}

test_others_may_not if {
	not allowed(request("DEPLOY", "mallory", "db1"))
	not allowed(request("DEPLOY", "ada", "db2"))
	not allowed(request("DEPLOY", "ada", "restore-7.evil.example"))
	not allowed(request("DELETE", "ada", "janitor.example.org"))
	not allowed(request("KEY", "grace", "anywhere"))
}

test_whoever_called_sudo_is_meant if {
	facts := request("DEPLOY", "root", "db1")
	not allowed(facts)
	allowed(object.union(facts, {"actor": {"user": "root", "uid": 0, "sudo_user": "ada"}}))
	not allowed(object.union(facts, {"actor": {"user": "root", "uid": 0, "sudo_user": "mallory"}}))
}

test_a_class_without_a_list_is_as_shipped if {
	allowed(request("READ", "anybody", "anywhere"))
	allowed(request("WRITE", "anybody", "anywhere"))
}

test_an_empty_list_lets_nobody_through if {
	empty := {"deploy": {"users": [], "hosts": []}}
	not lifeboat.decision.allow with input as request("DEPLOY", "ada", "db1") with data.people as empty
}
