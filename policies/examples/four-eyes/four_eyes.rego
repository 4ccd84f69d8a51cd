# Four eyes for everything that deletes, in every environment. Put it into one directory with lifeboat.rego, and name the directory in
# policy.path.
package lifeboat

missing contains reason if {
	input.action == "DELETE"
	not input.dry_run
	count(approvers) == 0
	reason := sprintf("%s takes something away, and nobody else has approved it: %s", [input.operation, way])
}
