//! Requests that never reached the service, or whose answer never reached us.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;

/// The longest message from elsewhere that is repeated, in characters.
const MAX_MESSAGE: usize = 200;

/// Why a request did not get through, in one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsent {
    /// There are no credentials, or they cannot be used.
    Credentials(String),
    /// The server's certificate is not believed: trying again does not make it better.
    Certificate(String),
    /// Anything on the way.
    Lost(String),
}

impl Unsent {
    /// What the error of the SDK means.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let (mut next, mut last) = (Some(error), error);
        while let Some(error) = next {
            if let Some(credentials) = error.downcast_ref::<CredentialsError>() {
                return Self::Credentials(match credentials {
                    CredentialsError::CredentialsNotLoaded(_) => {
                        "no credentials found in environment, profile, web identity, container or instance".to_owned()
                    }
                    // The sources name profiles, files and roles; what they found there is not part of them.
                    other => format!("credentials: {}", clean(&root(other).to_string())),
                });
            }
            last = error;
            next = error.source();
        }
        let reason = clean(&last.to_string());
        // A word of its own: it may be part of a proxy's name.
        match reason.contains(" certificate") || reason.contains("UnknownIssuer") {
            true => Self::Certificate(reason),
            false => Self::Lost(reason),
        }
    }
}

fn root<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last
}

/// One line of a bearable length.
pub fn clean(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect();
    line.trim().trim_end_matches('.').to_owned()
}
