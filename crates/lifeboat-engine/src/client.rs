//! Clients of services that are spoken to by HTTP.

use std::path::Path;

use reqwest::{Certificate, Client, ClientBuilder, redirect};

/// A client that says who it is, that goes nowhere else because of an answer, and that believes the certificates in a PEM file instead of the system's,
/// where one is named. Times are the caller's to set.
///
/// # Errors
///
/// The file cannot be read, or has no certificate in it; in words, without anything of what stands there.
pub(crate) fn builder(ca_file: Option<&Path>) -> Result<ClientBuilder, String> {
    let builder = Client::builder()
        .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")))
        // Whoever answers would choose who gets what one was to see alone.
        .redirect(redirect::Policy::none());
    let Some(path) = ca_file else { return Ok(builder) };
    let bad = |problem: &dyn std::fmt::Display| format!("read {}: {problem}", path.display());
    let pem = std::fs::read(path).map_err(|error| bad(&error))?;
    let roots = Certificate::from_pem_bundle(&pem).map_err(|_| bad(&"a certificate in it cannot be read"))?;
    if roots.is_empty() {
        return Err(bad(&"no certificate in it"));
    }
    Ok(builder.tls_certs_only(roots))
}
