# Who may do what with lifeboat.
#
# lifeboat asks this policy before everything that it does, with facts that it has checked itself (docs/policy.md lists them), and does
# it only if the answer, `decision`, allows it. What no rule below allows is denied.
#
# This is the policy that is shipped. To change it: `lifeboat policy show > policy.rego`, edit, try it out with `lifeboat policy test
# policy.rego` and `lifeboat policy eval restore`, and name it in the configuration as `policy.path`. Rules can also be added in files of
# their own beside it, if policy.path is a directory: the three sets below grow from every file of this package.
package lifeboat

# ---- Settings. Change these first. ----------------------------------------------------------------------------------------------------

settings := {
	# Environments (policy.environment of the configuration) in which bringing data back, taking it away, and keys need more than a wish.
	"protected": {"production"},
	# There: how many people have to approve the plan. 0: nobody.
	"approvals": {
		# Into a directory of the running system, or with --start: this is a deployment.
		"restore-production": 2,
		# Into any other place: still everything that the database knows.
		"restore": 1,
		# A drill in a place of its own is what is wanted every week.
		"drill": 0,
		"drill-production": 2,
		# Takes only what has expired, after its grace period; and backups that nobody can verify, given up by name.
		"prune": 0,
		"prune-forget": 1,
		# Both only mark; nothing is gone until a prune after the grace period, and `lifeboat expire --undo` takes it back.
		"expire": 0,
		"unpin": 0,
		# Whoever has the data keys of a backup can read it anywhere, and nobody can take that back.
		"key-export": 2,
		# A new key opens and signs nothing until somebody configures it.
		"key-generate": 0,
		# Approvals can be asked for a restore, a prune and an export. The rest is allowed or not, and leaves a record; a stolen key has to be
		# revoked before anybody else is awake. More than 0 keeps all people from it who do not break the glass.
		"key-rotate": 0,
		"key-revoke": 0,
		"audit-resume": 0,
	},
	# Whether somebody alone may do it on the worst night, with --break-glass REASON. Everybody is told, and it stands out in the audit.
	"break_glass": {"allowed": false, "reason_characters": 10},
}

# ---- The answer. ----------------------------------------------------------------------------------------------------------------------

# Three sets of sentences decide: something must permit it; nothing may be missing, unless the glass is broken; nothing may refuse it.
decision := {"allow": true, "reasons": permits, "break_glass": false} if {
	count(permits) > 0
	count(missing) == 0
	count(refuses) == 0
} else := {"allow": true, "reasons": [sprintf("the glass was broken: %s", [text]) | some text in missing], "break_glass": true} if {
	glass_broken
	count(missing) > 0
	count(refuses) == 0
} else := {"allow": false, "reasons": (missing | refuses) | unbroken, "break_glass": false} if {
	count(missing | refuses) > 0
} else := {"allow": false, "reasons": [text | some text in {unknown} | unbroken], "break_glass": false}

unknown := sprintf("no rule of the policy allows %s (%s) in environment %s", [input.operation, input.action, input.environment])

glass_broken if {
	settings.break_glass.allowed
	count(trim_space(input.break_glass.reason)) >= settings.break_glass.reason_characters
}

# Why a reason that somebody gave with --break-glass changed nothing: it is the worst night, and they must not wonder.
unbroken contains "the reason of --break-glass changes nothing: settings.break_glass.allowed of the policy does not let the glass be broken here" if {
	input.break_glass.reason
	not settings.break_glass.allowed
}

unbroken contains reason if {
	settings.break_glass.allowed
	count(trim_space(input.break_glass.reason)) < settings.break_glass.reason_characters
	reason := sprintf("the reason of --break-glass changes nothing: it has to have at least %d characters", [settings.break_glass.reason_characters])
}

unbroken contains "the reason of --break-glass changes nothing: it goes around missing approvals, and around nothing else" if glass_broken

# ---- What permits. --------------------------------------------------------------------------------------------------------------------

# wal-fetch is of this class too: it serves a restore that was allowed, thousands of times, and a server must not be stopped half-way.
permits contains "it only looks at what is stored" if input.action == "READ"

permits contains "it adds, and takes nothing away" if input.action == "WRITE"

permits contains "anybody may ask for an approval, and only approvals of the trusted count" if input.action == "APPROVE"

permits contains "a dry run changes nothing" if input.dry_run

permits contains reason if {
	weighty
	not protected
	reason := sprintf("environment %s is not protected: only %s is", [input.environment, concat(", ", settings.protected)])
}

permits contains reason if {
	weighty
	protected
	settings.approvals[task] == 0
	reason := sprintf("%s needs no approval", [task])
}

permits contains reason if {
	weighty
	protected
	settings.approvals[task] > 0
	count(approvers) >= settings.approvals[task]
	reason := sprintf("approved by %s", [concat(", ", approvers)])
}

# ---- What is missing. -----------------------------------------------------------------------------------------------------------------

missing contains reason if {
	weighty
	protected
	not input.dry_run
	settings.approvals[task] > count(approvers)
	reason := sprintf("%s in environment %s has %d of %d approvals%s: %s", [
		task,
		input.environment,
		count(approvers),
		settings.approvals[task],
		names,
		way,
	])
}

# Two words of the person at the keyboard, and not of another: damaged pages are in the data that comes back.
refuses contains reason if {
	brings_back
	input.backup.state != "healthy"
	not input.target.accept_degraded
	reason := sprintf("backup %s is %s: pages were damaged when it was taken; take another (lifeboat list), or --accept-degraded", [
		input.backup.id,
		input.backup.state,
	])
}

refuses contains "no backup is named whose signature was verified" if {
	brings_back
	not input.backup
}

# ---- Words that the rules use. ----------------------------------------------------------------------------------------------------------

weighty if input.action in {"DEPLOY", "DELETE", "KEY"}

protected if input.environment in settings.protected

brings_back if {
	input.operation in {"restore", "drill-run"}
	not input.dry_run
}

# What it is called in settings.approvals. Without one of these names it is not known here, and denied.
task := "restore-production" if {
	input.operation == "restore"
	into_production
} else := "restore" if {
	input.operation == "restore"
	input.target
} else := "drill-production" if {
	input.operation == "drill-run"
	input.target.production
} else := "drill" if {
	input.operation == "drill-run"
	input.target
} else := "prune-forget" if {
	input.operation == "prune"
	count(input.deletion.forget) > 0
} else := "prune" if {
	input.operation == "prune"
	input.deletion
} else := input.operation if {
	input.operation in {"expire", "unpin", "key-generate", "key-rotate", "key-revoke", "key-export", "audit-resume"}
}

into_production if input.target.production

into_production if input.target.start

# lifeboat shows only approvals that were verified, of different people, none of them whoever asked. Looked at again all the same.
approvers contains approval.approver if {
	some approval in input.plan.approvals
	approval.approver != object.get(input.plan, "requester", "")
	time.parse_rfc3339_ns(approval.expires) > input.time_seconds * 1000000000
}

default names := ""

names := sprintf(" (%s)", [concat(", ", approvers)]) if count(approvers) > 0

default about := ""

about := sprintf(" %s", [input.backup.id]) if input.backup

default plan := "DIGEST"

plan := input.plan.digest if input.plan

# Which commands get them: nobody looks them up on the worst night.
default way := "approvals cannot be asked for this; settings.approvals of the policy says so"

way := sprintf("ask with lifeboat approval request %s%s, let others run lifeboat approval grant %s, then run it again with --approved %s", [
	input.operation,
	about,
	plan,
	plan,
]) if {
	input.operation in {"restore", "prune", "key-export"}
}
