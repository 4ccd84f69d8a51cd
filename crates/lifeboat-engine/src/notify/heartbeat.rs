//! A dead man's switch: an address that somebody else watches, and that is asked for as long as all is well. When nobody asks any more, they tell.

use super::http::Http;
use super::{HttpTarget, NotifyError};
use crate::secret::SecretSource;

/// Somebody who notices silence.
pub struct Heartbeat {
    http: Http,
}

impl Heartbeat {
    /// Makes the client; nothing is asked for yet. The address is what such services hand out, and a secret: whoever has it can keep them silent.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Settings`].
    pub fn open(url: SecretSource) -> Result<Self, NotifyError> {
        Ok(Self { http: Http::open(HttpTarget { url, token: None, headers: Vec::new(), ca_file: None })? })
    }

    /// Says that all is well: `GET`, and any status of the 200s is an answer. Blocks, for [`super::TIMEOUT`] at most.
    ///
    /// # Errors
    ///
    /// [`NotifyError`].
    pub fn beat(&self) -> Result<(), NotifyError> {
        self.http.get()
    }
}
