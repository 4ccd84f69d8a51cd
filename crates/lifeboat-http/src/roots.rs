//! Whose certificates are believed.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Whose certificates are believed.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// What TLS is spoken with; `None`: with the system's.
    own: Option<Arc<ClientConfig>>,
}

/// There are none to believe.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no certificate of an authority is known: {0}")]
pub(crate) struct NoRoots(String);

impl Roots {
    /// The system's, or those of `SSL_CERT_FILE` and `SSL_CERT_DIR`. They are read when a connection first needs them, once in the life of the process.
    pub fn system() -> Self {
        Self::default()
    }

    /// Those of a file of PEM certificates, and no others. Errors are one line.
    pub fn of_file(path: &Path) -> Result<Self, String> {
        let pem = std::fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let added = certificate.ok().map(|certificate| roots.add(certificate));
            if !matches!(added, Some(Ok(()))) {
                return Err(format!("read {}: a certificate in it cannot be read", path.display()));
            }
        }
        if roots.is_empty() {
            return Err(format!("read {}: no certificate in it", path.display()));
        }
        Ok(Self { own: Some(config(roots)) })
    }

    /// Those of the file, if one is named, or the system's.
    pub fn of(file: Option<&Path>) -> Result<Self, String> {
        file.map_or_else(|| Ok(Self::system()), Self::of_file)
    }

    /// What TLS is spoken with.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, NoRoots> {
        static SYSTEM: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        match self.own.as_ref().or_else(|| SYSTEM.get()) {
            Some(config) => Ok(config.clone()),
            // A failure is not kept: this may be an agent, and somebody mend it.
            None => of_system().map(|config| SYSTEM.get_or_init(|| config).clone()),
        }
    }
}

fn of_system() -> Result<Arc<ClientConfig>, NoRoots> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    match found.errors.first() {
        _ if !roots.is_empty() => Ok(config(roots)),
        Some(error) => Err(NoRoots(error.to_string())),
        None => Err(NoRoots("install the system's (ca-certificates), or name a file: SSL_CERT_FILE".to_owned())),
    }
}

/// No protocol is offered in it (ALPN, RFC 7301), so that servers speak HTTP/1.1.
fn config(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(builder.expect("the provider knows TLS 1.2 and 1.3").with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_told() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        assert!(Roots::of_file(file.path()).expect_err("empty").ends_with("no certificate in it"));
        let half = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        std::fs::write(file.path(), half).expect("write");
        assert!(Roots::of_file(file.path()).expect_err("half of one").ends_with("a certificate in it cannot be read"));
        assert!(Roots::of_file(&file.path().join("x")).expect_err("nothing").starts_with("read "));
    }

    #[test]
    fn no_protocol_but_the_first_is_offered() {
        assert!(Roots::system().config().expect("this system has some").alpn_protocols.is_empty());
    }
}
