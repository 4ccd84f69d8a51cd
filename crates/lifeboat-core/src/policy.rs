//! What a policy is asked, and what it answers.
//!
//! [`Facts`] are the whole input of a policy: lifeboat has checked them (signatures, times, who approved), so that a policy
//! computes with values and needs neither cryptography nor a clock. [`Decision`] is the whole answer. Whatever does not become a
//! [`Decision`] that allows, is no: no policy, an error, a policy service that does not answer (`docs/policy.md`).

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::repository::Sha256;
use crate::repository::backup_id::BackupId;

/// Version of the facts: what a policy written for it may rely on. Members are added without a new one.
pub const FACTS_SCHEMA: u32 = 1;

/// What an operation does to the world, from a policy's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ActionClass {
    /// Looks at what is stored.
    Read,
    /// Adds something that can be left alone: a backup, an artifact, WAL, a pin.
    Write,
    /// Brings data back into use: restore, promote, a drill against production.
    Deploy,
    /// Takes something away, or makes that possible: expire, prune, unpin.
    Delete,
    /// Makes, changes or hands out keys and trust.
    Key,
    /// Asks for an approval, or gives one.
    Approve,
}

/// Everything that asks a policy first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Make a repository.
    Init,
    /// Try out the repository and its surroundings.
    Doctor,
    /// List backups.
    List,
    /// Show a backup.
    Show,
    /// Check what is stored.
    Verify,
    /// Take a backup.
    Backup,
    /// Restore a backup.
    Restore,
    /// Bring replicas to what the primary has.
    Replicate,
    /// Mark backups that no rule keeps.
    Expire,
    /// Take such a mark back.
    ExpireUndo,
    /// Delete what expired backups needed.
    Prune,
    /// Hold a backup.
    Pin,
    /// End a pin.
    Unpin,
    /// Store an artifact.
    ArtifactPut,
    /// Read an artifact's bytes.
    ArtifactGet,
    /// List artifacts.
    ArtifactList,
    /// Check artifacts.
    ArtifactVerify,
    /// Store a directory of artifacts.
    ArtifactSync,
    /// Archive WAL.
    WalPush,
    /// Read WAL for a recovery.
    WalFetch,
    /// Receive WAL.
    WalReceive,
    /// Look at the archive of WAL.
    WalStatus,
    /// Give a moment a name.
    RestorePoint,
    /// Make keys.
    KeyGenerate,
    /// List the trusted keys.
    KeyList,
    /// Replace the signing key.
    KeyRotate,
    /// Declare that a key no longer counts.
    KeyRevoke,
    /// Hand out the data keys of a backup.
    KeyExport,
    /// Ask for an approval.
    ApprovalRequest,
    /// Give an approval.
    ApprovalGrant,
    /// List approvals.
    ApprovalList,
    /// Read the audit log.
    AuditList,
    /// Check the audit log.
    AuditVerify,
    /// Go on with an audit log that lost its end.
    AuditResume,
    /// Restore into a place of its own, and check.
    DrillRun,
    /// List drills.
    DrillList,
    /// Show the report of a drill.
    DrillShow,
    /// Say how the system stands.
    Status,
    /// Do what is planned, day and night.
    Agent,
    /// Send everybody who is told of alerts one that means nothing.
    AlertTest,
}

impl Operation {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 40] = [
        Self::Init,
        Self::Doctor,
        Self::List,
        Self::Show,
        Self::Verify,
        Self::Backup,
        Self::Restore,
        Self::Replicate,
        Self::Expire,
        Self::ExpireUndo,
        Self::Prune,
        Self::Pin,
        Self::Unpin,
        Self::ArtifactPut,
        Self::ArtifactGet,
        Self::ArtifactList,
        Self::ArtifactVerify,
        Self::ArtifactSync,
        Self::WalPush,
        Self::WalFetch,
        Self::WalReceive,
        Self::WalStatus,
        Self::RestorePoint,
        Self::KeyGenerate,
        Self::KeyList,
        Self::KeyRotate,
        Self::KeyRevoke,
        Self::KeyExport,
        Self::ApprovalRequest,
        Self::ApprovalGrant,
        Self::ApprovalList,
        Self::AuditList,
        Self::AuditVerify,
        Self::AuditResume,
        Self::DrillRun,
        Self::DrillList,
        Self::DrillShow,
        Self::Status,
        Self::Agent,
        Self::AlertTest,
    ];

    /// Its class. A policy sees both, and may forget about the one or the other.
    pub const fn class(self) -> ActionClass {
        match self {
            Self::Doctor
            | Self::List
            | Self::Show
            | Self::Verify
            | Self::ArtifactGet
            | Self::ArtifactList
            | Self::ArtifactVerify
            | Self::WalFetch
            | Self::WalStatus
            | Self::KeyList
            | Self::ApprovalList
            | Self::AuditList
            | Self::AuditVerify
            | Self::DrillList
            | Self::DrillShow
            | Self::Status => ActionClass::Read,
            Self::Init
            | Self::Backup
            | Self::Replicate
            | Self::ExpireUndo
            | Self::Pin
            | Self::ArtifactPut
            | Self::ArtifactSync
            | Self::WalPush
            | Self::WalReceive
            | Self::RestorePoint
            | Self::Agent
            | Self::AlertTest => ActionClass::Write,
            Self::Restore | Self::DrillRun => ActionClass::Deploy,
            Self::Expire | Self::Prune | Self::Unpin => ActionClass::Delete,
            Self::KeyGenerate | Self::KeyRotate | Self::KeyRevoke | Self::KeyExport | Self::AuditResume => ActionClass::Key,
            Self::ApprovalRequest | Self::ApprovalGrant => ActionClass::Approve,
        }
    }

    /// Whether its start and its end stand in the audit log. What only looks at lists, WAL, which comes by the thousand, and what touches nothing that is stored
    /// do not.
    pub const fn is_audited(self) -> bool {
        !matches!(
            self,
            Self::Doctor
                | Self::List
                | Self::Show
                | Self::ArtifactList
                | Self::WalPush
                | Self::WalFetch
                | Self::WalReceive
                | Self::WalStatus
                | Self::RestorePoint
                | Self::KeyList
                | Self::ApprovalList
                | Self::AuditList
                | Self::AuditVerify
                | Self::DrillList
                | Self::DrillShow
                | Self::Status
                // What it does is, each by itself.
                | Self::Agent
                | Self::AlertTest
        )
    }

    /// Its name, as policies and the audit log have it.
    pub fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => unreachable!("an operation is a word"),
        }
    }
}

/// Who acts, as this host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The user that the process runs as.
    pub user: String,
    /// Its number.
    pub uid: u32,
    /// Who called `sudo`, if that is how the process began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
}

/// The repository that the operation is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryFacts {
    /// Where it is, without credentials.
    pub url: String,
    /// Its id, once it was opened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// The backup that the operation is about. These facts exist for a backup whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupFacts {
    /// Its id.
    pub id: BackupId,
    /// Name of the system that it is a backup of.
    pub name: String,
    /// `healthy` or `degraded`.
    pub state: String,
    /// When it began.
    pub started: Timestamp,
    /// Seconds since then.
    pub age_seconds: i64,
    /// Who signed it: the hint of a key, or issuer and subject.
    pub signed_by: String,
}

/// Where a restore goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// Data directory that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgdata: Option<String>,
    /// Directory of artifacts that is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifacts: Option<String>,
    /// The server is started.
    #[serde(default)]
    pub start: bool,
    /// Recovery target: `latest`, `immediate`, `time`, `lsn`, `transaction-id`, `name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    /// It is, or is inside, a directory that the configuration names as the protected system's own.
    #[serde(default)]
    pub production: bool,
    /// Whoever asks takes a backup in which pages were damaged (`--accept-degraded`).
    #[serde(default)]
    pub accept_degraded: bool,
}

/// What is taken away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionFacts {
    /// Backups that go, or are marked to go.
    pub backups: u64,
    /// Objects that go.
    pub objects: u64,
    /// Backups that nobody can verify, and that somebody gave up by name.
    #[serde(default)]
    pub forget: Vec<String>,
}

/// How an approver proved who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApproverKind {
    /// A key file or a key service.
    Key,
    /// A certificate for an OpenID identity.
    Identity,
    /// A key of SSH, in an allowed-signers file.
    Ssh,
}

/// One approval that was verified: signed by somebody who is trusted to approve, for the plan at hand, and not expired. Others
/// are not shown to a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalFacts {
    /// The person: every key and identity of one person has one name here.
    pub approver: String,
    /// How they signed.
    pub kind: ApproverKind,
    /// When, by their own word or an authority's.
    pub granted: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
}

/// The plan that would run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanFacts {
    /// SHA-256 of its JSON.
    pub digest: Sha256,
    /// Who asked for approvals of it, if anybody did: they are not among the approvers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<String>,
    /// Verified approvals, one for each person, never the requester's own.
    #[serde(default)]
    pub approvals: Vec<ApprovalFacts>,
}

impl PlanFacts {
    /// A plan that nobody was asked about.
    pub fn unapproved(digest: Sha256) -> Self {
        Self { digest, requester: None, approvals: Vec::new() }
    }
}

/// Somebody goes around the rules, and says why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakGlass {
    /// In their words; never empty.
    pub reason: String,
}

/// The input of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// [`FACTS_SCHEMA`].
    pub schema: u32,
    /// When the question is asked.
    pub time: Timestamp,
    /// The same, in seconds since 1970, to compute with.
    pub time_seconds: i64,
    /// What is to be done.
    pub operation: Operation,
    /// Its class.
    pub action: ActionClass,
    /// Only the plan is asked for: nothing is changed, and no data is read.
    pub dry_run: bool,
    /// By whom.
    pub actor: Actor,
    /// On which host.
    pub host: String,
    /// `policy.environment` of the configuration: `production`, for example.
    pub environment: String,
    /// In which repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<RepositoryFacts>,
    /// About which backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupFacts>,
    /// Where to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetFacts>,
    /// What goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion: Option<DeletionFacts>,
    /// By which plan, and who approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanFacts>,
    /// Around the rules, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub break_glass: Option<BreakGlass>,
}

/// Facts that are more than this many bytes of JSON are not asked about: a policy reads a few thousand, and nobody waits for one that
/// reads more.
pub const MAX_FACTS_BYTES: usize = 1 << 20;

/// Reasons that are kept of an answer: they are printed on a terminal and stand in the audit log for ever.
pub const MAX_REASONS: usize = 32;

/// Characters that are kept of a reason.
pub const MAX_REASON_CHARACTERS: usize = 1000;

/// What a policy answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// It may be done.
    pub allow: bool,
    /// Why, or why not: a sentence each.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// It is only allowed because somebody broke the glass: this is told to everybody.
    #[serde(default)]
    pub break_glass: bool,
}

/// How an answer came about, for programs: only [`Code::Allowed`] is yes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The policy allows it.
    Allowed,
    /// The policy does not allow it.
    Denied,
    /// The policy has nothing to say about it: its rule is undefined for these facts.
    Undefined,
    /// The policy, or the policy service, failed while it looked at these facts.
    Error,
    /// There was no answer in time.
    Timeout,
    /// The policy service could not be reached.
    Unreachable,
    /// The answer is none: not of the form of a [`Decision`], or at odds with the facts.
    Malformed,
    /// The facts are more than [`MAX_FACTS_BYTES`].
    TooLarge,
    /// There is no policy where the configuration says.
    NoPolicy,
    /// There is a policy, and it cannot be used: a mistake in it, or a builtin that policies do not get.
    Broken,
}

impl Code {
    /// All, in the order of the documentation.
    pub const ALL: [Self; 10] = [
        Self::Allowed,
        Self::Denied,
        Self::Undefined,
        Self::Error,
        Self::Timeout,
        Self::Unreachable,
        Self::Malformed,
        Self::TooLarge,
        Self::NoPolicy,
        Self::Broken,
    ];

    /// Its name, as documents have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Undefined => "undefined",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
            Self::TooLarge => "too-large",
            Self::NoPolicy => "no-policy",
            Self::Broken => "broken",
        }
    }
}

/// A decision and how it came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// How it came about.
    pub code: Code,
    /// What it is: allows only with [`Code::Allowed`].
    pub decision: Decision,
}

impl Answer {
    /// No, because of something that is not the policy's word.
    pub fn refused(code: Code, reason: impl Into<String>) -> Self {
        let code = if code == Code::Allowed { Code::Error } else { code };
        Self { code, decision: Decision { allow: false, reasons: vec![tidy(&reason.into())], break_glass: false } }
    }

    /// What counts of what a policy said: no glass is broken that nobody broke, and reasons can be printed.
    pub fn weigh(said: Decision, facts: &Facts) -> Self {
        if said.break_glass && facts.break_glass.is_none() {
            return Self::refused(Code::Malformed, "the policy says that the glass was broken, and nobody broke it");
        }
        let mut reasons: Vec<String> = said.reasons.iter().map(|reason| tidy(reason)).filter(|reason| !reason.is_empty()).collect();
        if reasons.len() > MAX_REASONS {
            let more = reasons.len() - (MAX_REASONS - 1);
            reasons.truncate(MAX_REASONS - 1);
            reasons.push(format!("and {more} more"));
        }
        if reasons.is_empty() && !said.allow {
            reasons.push("the policy does not allow it, and gives no reason".to_owned());
        }
        let code = if said.allow { Code::Allowed } else { Code::Denied };
        Self { code, decision: Decision { allow: said.allow, reasons, break_glass: said.allow && said.break_glass } }
    }

    /// What two engines together say: yes only if both do. Of a no, the reasons are those of whoever said it.
    pub fn both(self, other: Self) -> Self {
        match (self.decision.allow, other.decision.allow) {
            (true, false) => other,
            (false, true) => self,
            (allow, _) => {
                let mut decision = self.decision;
                decision.break_glass |= other.decision.break_glass;
                for reason in other.decision.reasons {
                    if !decision.reasons.contains(&reason) {
                        decision.reasons.push(reason);
                    }
                }
                decision.reasons.truncate(MAX_REASONS);
                Self { code: self.code, decision: Decision { allow, ..decision } }
            }
        }
    }
}

/// One line that can be printed: a policy service is not trusted with a terminal.
fn tidy(reason: &str) -> String {
    let mut line = String::new();
    for word in reason.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    match line.char_indices().nth(MAX_REASON_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn facts(break_glass: bool) -> Facts {
        Facts {
            schema: FACTS_SCHEMA,
            time: Timestamp::UNIX_EPOCH,
            time_seconds: 0,
            operation: Operation::Restore,
            action: ActionClass::Deploy,
            dry_run: false,
            actor: Actor { user: "ada".into(), uid: 1000, sudo_user: None },
            host: "db1".into(),
            environment: "production".into(),
            repository: None,
            backup: None,
            target: None,
            deletion: None,
            plan: None,
            break_glass: break_glass.then(|| BreakGlass { reason: "the data centre burns".into() }),
        }
    }

    fn decision() -> impl Strategy<Value = Decision> {
        (any::<bool>(), proptest::collection::vec(".{0,20}", 0..50), any::<bool>()).prop_map(|(allow, reasons, break_glass)| Decision {
            allow,
            reasons,
            break_glass,
        })
    }

    proptest! {
        #[test]
        fn yes_is_only_what_a_policy_said_and_both_said(a in decision(), b in decision(), glass in any::<bool>()) {
            let facts = facts(glass);
            let (one, two) = (Answer::weigh(a.clone(), &facts), Answer::weigh(b, &facts));
            for answer in [&one, &two] {
                prop_assert_eq!(answer.decision.allow, answer.code == Code::Allowed);
                prop_assert!(!answer.decision.break_glass || (glass && answer.decision.allow));
                prop_assert!(answer.decision.allow || !answer.decision.reasons.is_empty());
                prop_assert!(answer.decision.reasons.len() <= MAX_REASONS);
            }
            prop_assert_eq!(one.decision.allow, a.allow && (glass || !a.break_glass));
            let both = one.clone().both(two.clone());
            prop_assert_eq!(both.decision.allow, one.decision.allow && two.decision.allow);
            prop_assert_eq!(both.decision.allow, both.code == Code::Allowed);
            prop_assert_eq!(both.decision.break_glass, both.decision.allow && (one.decision.break_glass || two.decision.break_glass));
            prop_assert!(both.decision.allow || !both.decision.reasons.is_empty());
        }

        #[test]
        fn a_reason_is_one_line_that_can_be_printed(reason in any::<String>()) {
            let tidy = tidy(&reason);
            prop_assert!(!tidy.chars().any(char::is_control));
            prop_assert!(tidy.chars().count() <= MAX_REASON_CHARACTERS + 1);
        }
    }

    #[test]
    fn a_refusal_never_allows_and_codes_have_one_name() {
        for code in Code::ALL {
            let answer = Answer::refused(code, "no");
            assert!(!answer.decision.allow && answer.code != Code::Allowed);
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        }
        assert!(Code::ALL.is_sorted());
        assert_eq!(Code::ALL.len(), Code::Broken as usize + 1);
    }

    #[test]
    fn every_operation_is_listed_once_and_has_a_name_of_its_own() {
        let names: BTreeSet<String> = Operation::ALL.into_iter().map(Operation::name).collect();
        assert_eq!(names.len(), Operation::ALL.len());
        // The order of the type is that of the list: one left out of the list would leave a gap.
        assert!(Operation::ALL.is_sorted());
        assert_eq!(Operation::ALL.len(), Operation::AlertTest as usize + 1);
        for operation in Operation::ALL {
            assert_eq!(serde_json::from_value::<Operation>(operation.name().into()).unwrap(), operation);
        }
    }

    #[test]
    fn what_gives_data_back_or_takes_it_away_is_audited() {
        for operation in Operation::ALL {
            let weighty = matches!(operation.class(), ActionClass::Deploy | ActionClass::Delete | ActionClass::Key | ActionClass::Approve);
            assert!(operation.is_audited() || !weighty, "{operation:?}");
        }
    }

    #[test]
    fn an_answer_without_allow_is_none() {
        assert!(serde_json::from_str::<Decision>("{}").is_err());
        assert!(serde_json::from_str::<Decision>(r#"{"allow": "yes"}"#).is_err());
        assert!(!serde_json::from_str::<Decision>(r#"{"allow": false}"#).unwrap().break_glass);
    }
}
