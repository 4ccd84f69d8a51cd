# Who may do what, and where from: lists in data.json, which somebody else may look after. Put both into one directory with lifeboat.rego,
# and name the directory in policy.path. It is a list of who may try; approvals are asked for all the same.
package lifeboat

# Whoever called sudo, and not root.
default person := "nobody"

person := object.get(input.actor, "sudo_user", input.actor.user)

listed := data.people[lower(input.action)]

refuses contains reason if {
	limited
	not person in listed.users
	reason := sprintf("%s is not in the list of people for %s: %s", [person, input.action, concat(", ", sort(listed.users))])
}

refuses contains reason if {
	limited
	count(listed.hosts) > 0
	not host_listed
	reason := sprintf("host %s is not in the list of hosts for %s: %s", [input.host, input.action, concat(", ", sort(listed.hosts))])
}

# A class without a list is nobody's business here; but a list that is empty lets nobody through.
limited if listed

host_listed if {
	some pattern in listed.hosts
	glob.match(pattern, ["."], input.host)
}
