//! Signatures of SSH keys, as `ssh-keygen -Y sign` makes them (`PROTOCOL.sshsig` of OpenSSH).
//!
//! Verified here, by a library; made by OpenSSH's own program, because that reaches what a library does not: agents, security keys that
//! want to be touched, passphrases that a terminal is asked for.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use jiff::Timestamp;
use lifeboat_core::approval::SSH_NAMESPACE;
use lifeboat_core::approval::allowed_signers::AllowedSigners;
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, PublicKey, SshSig};

/// Bytes of a signature in text. Ours have 300 to 1000.
pub const MAX_SIGNATURE_BYTES: usize = 16 << 10;

/// Length of flags and counter, which stand behind the signature of a security key (`PROTOCOL.u2f`).
const SK_TRAILER_BYTES: usize = 5;

/// Somebody touched the security key.
const USER_PRESENT: u8 = 1;

/// Why an SSH signature proves nothing, or was not made.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// Not an SSH signature.
    #[error("read SSH signature: {0}")]
    Malformed(String),
    /// It was made for something else.
    #[error("verify SSH signature: it is for namespace {0:?}, not for approvals")]
    Namespace(String),
    /// A key that cannot be verified here.
    #[error("verify SSH signature: keys of type {0} are not accepted; ed25519, ecdsa-sha2-nistp256 and both of security keys are")]
    Unsupported(String),
    /// It does not match.
    #[error("verify SSH signature: it does not match the text")]
    Mismatch,
    /// A security key that nobody touched.
    #[error("verify SSH signature: nobody touched the security key")]
    Untouched,
    /// By a key that nobody is known by.
    #[error("trust SSH signature of {fingerprint}: {why}")]
    NotAllowed {
        /// The key.
        fingerprint: String,
        /// Why not.
        why: String,
    },
    /// The program did not sign.
    #[error("sign with {program}: {problem}")]
    Program {
        /// The program.
        program: &'static str,
        /// What happened.
        problem: String,
    },
    /// The agent has no key of an approver, or several.
    #[error("choose a key of the SSH agent: {0}")]
    Agent(String),
}

/// Who made a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSigned {
    /// Principals of the key, the best known first.
    pub names: Vec<String>,
    /// `SHA256:…`.
    pub fingerprint: String,
}

/// Whose signature over `text` this is, at this moment.
pub fn verify(text: &[u8], armored: &str, allowed: &AllowedSigners, now: Timestamp) -> Result<SshSigned, SshError> {
    if armored.len() > MAX_SIGNATURE_BYTES {
        return Err(SshError::Malformed(format!("{} bytes, the limit is {MAX_SIGNATURE_BYTES}", armored.len())));
    }
    check_type(armored)?;
    let signature = SshSig::from_pem(armored).map_err(|error| SshError::Malformed(error.to_string()))?;
    check_form(armored, &signature)?;
    if signature.version() != SshSig::VERSION {
        return Err(SshError::Malformed(format!("version {}", signature.version())));
    }
    if signature.namespace() != SSH_NAMESPACE {
        return Err(SshError::Namespace(signature.namespace().chars().take(80).collect()));
    }
    let key = signature.public_key();
    if !is_supported(key) {
        return Err(SshError::Unsupported(key.algorithm().to_string()));
    }
    PublicKey::from(key.clone()).verify(SSH_NAMESPACE, text, &signature).map_err(|_| SshError::Mismatch)?;
    if matches!(key, KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_)) {
        let bytes = signature.signature_bytes();
        let flags = bytes.len().checked_sub(SK_TRAILER_BYTES).and_then(|at| bytes.get(at));
        if flags.is_none_or(|flags| flags & USER_PRESENT == 0) {
            return Err(SshError::Untouched);
        }
    }
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    let is_key = |text: &str| PublicKey::from_openssh(text).is_ok_and(|allowed| allowed.key_data() == key);
    match allowed.names(is_key, SSH_NAMESPACE, &[now]) {
        Ok(names) => Ok(SshSigned { names, fingerprint }),
        Err(why) => Err(SshError::NotAllowed { fingerprint, why }),
    }
}

/// One signature has one form: the library lets lengths through that are longer than what they are of. (Those of ECDSA security keys it
/// writes in another way than it reads them.)
fn check_form(text: &str, signature: &SshSig) -> Result<(), SshError> {
    if matches!(signature.public_key(), KeyData::SkEcdsaSha2NistP256(_)) {
        return Ok(());
    }
    let written = signature.to_pem(ssh_key::LineEnding::LF).map_err(|error| SshError::Malformed(error.to_string()))?;
    if blob(&written).is_some_and(|written| blob(text) == Some(written)) {
        return Ok(());
    }
    Err(SshError::Malformed("written anew, it has other bytes".to_owned()))
}

/// What stands between the lines of dashes.
fn blob(armored: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    let body: String = armored.lines().filter(|line| !line.starts_with("-----")).flat_map(|line| line.trim().chars()).collect();
    base64::engine::general_purpose::STANDARD.decode(body).ok()
}

fn is_supported(key: &KeyData) -> bool {
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => true,
        Algorithm::Ecdsa { curve } => curve == EcdsaCurve::NistP256,
        _ => false,
    }
}

/// Names the type of a key that the library reads no signature of: "cannot be decoded" would help nobody. RSA, which it could verify with a
/// crate that leaks secrets by its timing (`deny.toml`), and certificates, whose names somebody else vouches for.
fn check_type(signature: &str) -> Result<(), SshError> {
    let Some(bytes) = blob(signature) else { return Ok(()) };
    // "SSHSIG", version, length of the key, then the key: length of its type, its type.
    let Some(length) = bytes.get(14..18).and_then(|length| Some(u32::from_be_bytes(length.try_into().ok()?) as usize)) else {
        return Ok(());
    };
    let Some(name) = bytes.get(18..18usize.saturating_add(length.min(80))).and_then(|name| std::str::from_utf8(name).ok()) else {
        return Ok(());
    };
    match name {
        "ssh-rsa" | "ssh-dss" => Err(SshError::Unsupported(name.to_owned())),
        name if name.contains("-cert-v0") && name.bytes().all(|b| b.is_ascii_graphic()) => Err(SshError::Unsupported(name.to_owned())),
        _ => Ok(()),
    }
}

/// Which key of SSH signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SshKey {
    /// A private key, or a public key whose private half the agent has.
    File(PathBuf),
    /// The one key in the agent that an approver is known by. The directory is for its public half, for as long as it takes.
    Agent(PathBuf),
}

/// Signs text; what it takes from the person (passphrase, touch) `ssh-keygen` asks for on the terminal.
pub fn sign(text: &[u8], key: &SshKey, allowed: &AllowedSigners) -> Result<String, SshError> {
    match key {
        SshKey::File(path) => keygen(text, path),
        SshKey::Agent(directory) => {
            let public = agent_key(allowed)?;
            let path = directory.join(format!(".lifeboat-{}.pub", crate::random::id()));
            let failed = |error: std::io::Error| SshError::Agent(format!("write {}: {error}", path.display()));
            let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
            let signed = file.write_all(format!("{public}\n").as_bytes()).map_err(failed).and_then(|()| keygen(text, &path));
            let _ = std::fs::remove_file(&path);
            signed
        }
    }
}

/// The key of the agent that an approver is known by.
fn agent_key(allowed: &AllowedSigners) -> Result<String, SshError> {
    let output = Command::new("ssh-add").arg("-L").stdin(Stdio::null()).output();
    let output = output.map_err(|error| SshError::Program { program: "ssh-add", problem: error.to_string() })?;
    if !output.status.success() {
        return Err(SshError::Agent(last_line(&output.stderr).or(last_line(&output.stdout)).unwrap_or_else(|| "it has no keys".into())));
    }
    let listed = String::from_utf8_lossy(&output.stdout).into_owned();
    let keys = listed.lines().filter_map(|line| Some((line, PublicKey::from_openssh(line).ok()?)));
    let known = |key: &PublicKey| {
        let is_key = |entry: &str| PublicKey::from_openssh(entry).is_ok_and(|entry| entry.key_data() == key.key_data());
        allowed.entries.iter().any(|entry| entry.unusable.is_none() && is_key(&entry.key))
    };
    let found: Vec<&str> = keys.filter(|(_, key)| known(key)).map(|(line, _)| line).collect();
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => Err(SshError::Agent("none of its keys is in the file of allowed signers".into())),
        several => {
            Err(SshError::Agent(format!("{} of its keys are in the file of allowed signers; name the public key of one", several.len())))
        }
    }
}

fn keygen(text: &[u8], key: &Path) -> Result<String, SshError> {
    const PROGRAM: &str = "ssh-keygen";
    let failed = |problem: String| SshError::Program { program: PROGRAM, problem };
    let mut command = Command::new(PROGRAM);
    command.args(["-Y", "sign", "-n", SSH_NAMESPACE, "-f"]).arg(key);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    // The text is short, and the program reads it before it writes: no thread is needed. One that ends early says why by its exit code.
    let written = child.stdin.take().expect("piped").write_all(text);
    let mut signature = String::new();
    let read = child.stdout.take().expect("piped").take(MAX_SIGNATURE_BYTES as u64).read_to_string(&mut signature);
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    if !status.success() {
        return Err(failed(format!("it ended with {status}")));
    }
    written.map_err(|error| failed(error.to_string()))?;
    read.map_err(|error| failed(error.to_string()))?;
    Ok(signature)
}

fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests;
