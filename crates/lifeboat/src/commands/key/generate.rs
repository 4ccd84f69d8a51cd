//! `lifeboat key generate`

use super::Generate;
use crate::config::{Settings, UserKeys};
use crate::failure::Failure;
use crate::gate::{self, Question};
use crate::output::{self, Output};
use crate::session;
use lifeboat_core::policy::Operation;

pub(super) fn run(generate: &Generate, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    gate::guard(settings, None, Question::new(Operation::KeyGenerate), || generated(generate, settings, out))
}

fn generated(generate: &Generate, settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let Generate { out: directory, password_file } = generate;
    let keys = directory.as_ref().map_or_else(|| settings.user_keys.clone(), |directory| UserKeys::at(directory.clone()));
    if directory.is_none() {
        crate::config::user_directory()?;
    }
    let made = session::make_keys(&keys, password_file.as_deref())?;
    out.result(&made, || {
        let password = made.password_file.as_ref().map_or(String::new(), |path| format!("  its password    {}\n", path.display()));
        format!(
            "signing key       {}\n{password}public key        {}   (trust.keys)\nrestore identity  {}   (keep it where restores run, and a copy elsewhere)\nrecipient         {}   (encryption.recipients)\nhost identity     {}   (encryption.host_identity)\naudit key         {}   (audit.key_file)\nits public half   {}   (audit.trust of other hosts)\n",
            made.signing_key_file.display(),
            made.public_key_file.display(),
            made.identity_file.display(),
            made.recipient,
            made.host_identity_file.display(),
            made.audit_key_file.display(),
            made.audit_key,
        )
    });
    output::warn("without the restore identity nothing can be restored: keep a copy of it somewhere else");
    Ok(0)
}
