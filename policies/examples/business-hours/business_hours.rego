# Drills, prunes and keys in working hours only: what can wait until somebody is there waits. A restore never has to wait. Put it into one
# directory with lifeboat.rego, and name the directory in policy.path.
package lifeboat

hours := {
	"days": {"Monday", "Tuesday", "Wednesday", "Thursday", "Friday"},
	"from": 8,
	# Until the hour before it has ended.
	"until": 17,
	"zone": "Europe/Berlin",
}

can_wait := {"drill-run", "prune", "expire", "key-rotate", "key-export"}

# The time comes as a fact: a policy has no clock of its own.
moment := [input.time_seconds * 1000000000, hours.zone]

hour := time.clock(moment)[0]

working if {
	time.weekday(moment) in hours.days
	hour >= hours.from
	hour < hours.until
}

refuses contains reason if {
	input.operation in can_wait
	not input.dry_run
	not working
	reason := sprintf("%s can wait: it is %s, %d o'clock in %s, and working hours are from %d to %d on weekdays", [
		input.operation,
		time.weekday(moment),
		hour,
		hours.zone,
		hours.from,
		hours.until,
	])
}
