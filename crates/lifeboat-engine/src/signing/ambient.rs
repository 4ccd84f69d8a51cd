//! The identity token that the place where lifeboat runs has for it.
//!
//! Continuous integration systems describe how to get one in the environment of the job, and `sigstore-oidc` looks there: GitHub Actions
//! (with `id-token: write`), GitLab (`SIGSTORE_ID_TOKEN`), Buildkite, CircleCI. Where none of them is, the file is taken that Kubernetes
//! projects for cosign as well, which SPIFFE agents can keep filled too.

use std::path::Path;
use std::time::Duration;

use sigstore_oidc::IdentityToken;
use zeroize::Zeroizing;

use super::SignError;
use super::certificate::line;
use super::service::{Reach, Service};
use crate::secret::SecretSource;

/// Where Kubernetes puts a projected token for Sigstore (cosign, `pkg/providers/filesystem`).
pub const PROJECTED_TOKEN: &str = "/var/run/sigstore/cosign/oidc-token";

/// Time for the system to make a token.
const PATIENCE: Duration = Duration::from_secs(60);

/// Identity tokens with the audience `sigstore`, a new one each time where the system makes them on demand.
pub fn ambient_token(reach: &Reach) -> Result<SecretSource, SignError> {
    let service = Service::open(reach)?;
    Ok(Box::new(move || {
        let detected = service.wait(async { tokio::time::timeout(PATIENCE, IdentityToken::detect_ambient()).await });
        match detected {
            Ok(Ok(Some(token))) => Ok(Zeroizing::new(token.expose_secret().to_owned())),
            Ok(Ok(None)) => projected(Path::new(PROJECTED_TOKEN)),
            // It names variables and permissions, never what is in them.
            Ok(Err(error)) => Err(format!("ask the system for an identity token: {}", line(&error))),
            Err(_) => Err("ask the system for an identity token: no answer in time".to_owned()),
        }
    }))
}

fn projected(path: &Path) -> Result<Zeroizing<String>, String> {
    match std::fs::read_to_string(path) {
        Ok(token) => Ok(Zeroizing::new(token)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("there is no identity token here: no known continuous integration system, and no {}", path.display()))
        }
        Err(error) => Err(format!("read identity token {}: {error}", path.display())),
    }
}
