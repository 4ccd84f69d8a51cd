//! With the real `ssh-keygen` on the other side: what it signs is accepted here, and what is refused here for its form it was made to sign.

use std::fs;
use std::process::Output;

use aws_lc_rs::digest::{SHA256, SHA512, digest};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::*;

const TEXT: &[u8] = b"{\n  \"I\": \"agree\"\n}\n";

fn now() -> Timestamp {
    "2026-03-15T12:00:00Z".parse().unwrap()
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("openssh-client is installed");
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// A key of OpenSSH, and its public half.
fn key(directory: &Path, kind: &[&str]) -> (PathBuf, String) {
    let path = directory.join(kind.join("-"));
    let made = run(Command::new("ssh-keygen").args(["-q", "-N", "", "-C", "a comment", "-t"]).args(kind).arg("-f").arg(&path), b"");
    assert!(made.status.success(), "{made:?}");
    let public = fs::read_to_string(path.with_extension("pub")).unwrap();
    (path, public.trim().to_owned())
}

fn signed(key: &Path, namespace: &str, text: &[u8]) -> String {
    let made = run(Command::new("ssh-keygen").args(["-q", "-Y", "sign", "-n", namespace, "-f"]).arg(key), text);
    assert!(made.status.success(), "{made:?}");
    String::from_utf8(made.stdout).unwrap()
}

fn allowed(line: &str) -> AllowedSigners {
    let signers = AllowedSigners::parse(line);
    assert_eq!(signers.problems, Vec::<String>::new());
    signers
}

/// Whether `ssh-keygen` itself accepts a signature for a name, by this file.
fn keygen_accepts(directory: &Path, file: &str, name: &str, text: &[u8], signature: &str) -> bool {
    let (signers, path) = (directory.join("signers"), directory.join("signature"));
    fs::write(&signers, format!("{file}\n")).unwrap();
    fs::write(&path, signature).unwrap();
    let mut command = Command::new("ssh-keygen");
    command.args(["-Y", "verify", "-n", SSH_NAMESPACE, "-I", name, "-f"]).arg(&signers).arg("-s").arg(&path);
    run(&mut command, text).status.success()
}

#[test]
fn what_ssh_keygen_signs_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    for kind in [&["ed25519"][..], &["ecdsa", "-b", "256"]] {
        let (path, public) = key(directory.path(), kind);
        let line = format!("alice@example.com,alice namespaces=\"git,lifeboat-*\" {public}");
        let signature = sign(TEXT, &SshKey::File(path.clone()), &AllowedSigners::default()).unwrap();
        let by = verify(TEXT, &signature, &allowed(&line), now()).unwrap();
        assert_eq!(by.names[..2], ["alice@example.com", "alice"]);
        assert!(by.fingerprint.starts_with("SHA256:"));
        assert!(keygen_accepts(directory.path(), &line, "alice@example.com", TEXT, &signature));
        let told = run(Command::new("ssh-keygen").arg("-lf").arg(path.with_extension("pub")), b"");
        assert!(String::from_utf8_lossy(&told.stdout).contains(&by.fingerprint));

        // Another text, another purpose, another key, a line that ended.
        assert!(matches!(verify(b"more", &signature, &allowed(&line), now()), Err(SshError::Mismatch)));
        let git = signed(&path, "git", TEXT);
        assert!(matches!(verify(TEXT, &git, &allowed(&line), now()), Err(SshError::Namespace(name)) if name == "git"));
        let (_, other) = key(directory.path(), &[kind, &["-a", "17"]].concat());
        let refused = verify(TEXT, &signature, &allowed(&format!("bob {other}")), now()).unwrap_err();
        assert!(refused.to_string().contains("no line names its key"), "{refused}");
        let ended = format!("alice valid-before=\"20260315115959Z\" {public}");
        assert!(matches!(verify(TEXT, &signature, &allowed(&ended), now()), Err(SshError::NotAllowed { .. })));
        let authority = format!("alice cert-authority {public}");
        let refused = verify(TEXT, &signature, &allowed(&authority), now()).unwrap_err();
        assert!(refused.to_string().contains("cert-authority"), "{refused}");
    }
}

#[test]
fn keys_that_cannot_be_verified_are_named() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, says) in [(&["rsa", "-b", "3072"][..], "ssh-rsa"), (&["ecdsa", "-b", "384"], "nistp384")] {
        let (path, public) = key(directory.path(), kind);
        let signature = signed(&path, SSH_NAMESPACE, TEXT);
        let refused = verify(TEXT, &signature, &allowed(&format!("alice {public}")), now()).unwrap_err();
        assert!(matches!(&refused, SshError::Unsupported(kind) if kind.contains(says)), "{refused}");
        assert!(refused.to_string().contains("ed25519"), "{refused}");
    }
    // A certificate that an authority made of somebody's key.
    let (authority, _) = key(directory.path(), &["ed25519", "-a", "16"]);
    let (path, _) = key(directory.path(), &["ed25519"]);
    let made = run(
        Command::new("ssh-keygen").args(["-q", "-s"]).arg(&authority).args(["-I", "x", "-n", "alice"]).arg(path.with_extension("pub")),
        b"",
    );
    assert!(made.status.success(), "{made:?}");
    let certificate = directory.path().join("ed25519-cert.pub");
    let signature = run(Command::new("ssh-keygen").args(["-q", "-Y", "sign", "-n", SSH_NAMESPACE, "-f"]).arg(&certificate), TEXT);
    if signature.status.success() {
        let refused = verify(TEXT, &String::from_utf8(signature.stdout).unwrap(), &AllowedSigners::default(), now()).unwrap_err();
        assert!(matches!(&refused, SshError::Unsupported(kind) if kind.contains("-cert-")), "{refused}");
    }
}

fn prefixed(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

/// A signature as a security key makes it (`PROTOCOL.u2f`), by a key in software; and its public half.
fn by_security_key(text: &[u8], flags: u8) -> (String, String) {
    const KIND: &[u8] = b"sk-ssh-ed25519@openssh.com";
    const APPLICATION: &[u8] = b"ssh:";
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let public = [prefixed(KIND), prefixed(pair.public_key().as_ref()), prefixed(APPLICATION)].concat();
    let namespace = prefixed(SSH_NAMESPACE.as_bytes());
    let message =
        [b"SSHSIG".to_vec(), namespace.clone(), prefixed(b""), prefixed(b"sha512"), prefixed(digest(&SHA512, text).as_ref())].concat();
    let trailer = [&[flags][..], &9u32.to_be_bytes()].concat();
    let over = [digest(&SHA256, APPLICATION).as_ref(), &trailer, digest(&SHA256, &message).as_ref()].concat();
    let signature = [prefixed(KIND), prefixed(pair.sign(&over).as_ref()), trailer].concat();
    let blob =
        [b"SSHSIG\0\0\0\x01".to_vec(), prefixed(&public), namespace, prefixed(b""), prefixed(b"sha512"), prefixed(&signature)].concat();
    let lines: Vec<String> = BASE64.encode(blob).as_bytes().chunks(70).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
    let armored = format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"));
    (armored, format!("sk-ssh-ed25519@openssh.com {}", BASE64.encode(public)))
}

#[test]
fn a_security_key_has_to_be_touched() {
    let directory = tempfile::tempdir().unwrap();
    let (signature, public) = by_security_key(TEXT, 1);
    let line = format!("alice {public}");
    // It is what a security key makes: OpenSSH says so.
    assert!(keygen_accepts(directory.path(), &line, "alice", TEXT, &signature));
    assert_eq!(verify(TEXT, &signature, &allowed(&line), now()).unwrap().names[0], "alice");
    assert!(matches!(verify(b"more", &signature, &allowed(&line), now()), Err(SshError::Mismatch)));
    for flags in [0, 4] {
        let (untouched, _) = by_security_key(TEXT, flags);
        assert!(matches!(verify(TEXT, &untouched, &allowed(&line), now()), Err(SshError::Untouched)));
    }
}

#[test]
fn no_change_of_a_signature_is_accepted_and_none_panics() {
    let directory = tempfile::tempdir().unwrap();
    let (path, public) = key(directory.path(), &["ed25519"]);
    let signers = allowed(&format!("alice {public}"));
    let signature = signed(&path, SSH_NAMESPACE, TEXT);
    verify(TEXT, &signature, &signers, now()).unwrap();
    let body: String = signature.lines().filter(|line| !line.starts_with('-')).collect();
    let blob = BASE64.decode(body).unwrap();
    let armored = |blob: &[u8]| {
        let lines: Vec<String> = BASE64.encode(blob).as_bytes().chunks(70).map(|line| String::from_utf8(line.to_vec()).unwrap()).collect();
        format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
    };
    verify(TEXT, &armored(&blob), &signers, now()).unwrap();
    // A field for later versions, empty now, is signed over as well: so every single bit counts.
    for at in 0..blob.len() {
        for bit in [0, 3, 7] {
            let mut other = blob.clone();
            other[at] ^= 1 << bit;
            assert!(verify(TEXT, &armored(&other), &signers, now()).is_err(), "byte {at}, bit {bit}");
        }
        assert!(verify(TEXT, &armored(&blob[..at]), &signers, now()).is_err());
    }
    for other in
        ["", "-----BEGIN SSH SIGNATURE-----", &"A".repeat(MAX_SIGNATURE_BYTES + 1), &signature.replace("SSH SIGNATURE", "PRIVATE KEY")]
    {
        assert!(matches!(verify(TEXT, other, &signers, now()), Err(SshError::Malformed(_))));
    }
}

#[test]
fn a_key_that_is_not_there_is_said() {
    let missing = sign(TEXT, &SshKey::File("/no/such/key".into()), &AllowedSigners::default()).unwrap_err();
    assert!(missing.to_string().starts_with("sign with ssh-keygen: it ended with"), "{missing}");
}
