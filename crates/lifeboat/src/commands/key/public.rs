//! `lifeboat key public`: the public half of what signs on this host, also where a service holds the private one.

use crate::config::Settings;
use crate::failure::{EXIT_FAILED, Failure};
use crate::output::Output;
use crate::session;

pub(super) fn run(settings: &Settings, out: &Output) -> Result<u8, Failure> {
    let signer = session::signer(settings)?;
    let Some(public) = signer.public_key() else {
        return Err(Failure::new(EXIT_FAILED, format!("print the public key: {} has none that lasts", signer.describe()))
            .hint("trust its issuer and subject in trust.identities (docs/signing.md); lifeboat doctor tries the signer"));
    };
    let pem = public.to_pem();
    out.result(&serde_json::json!({"signer": signer.describe(), "hint": public.hint(), "pem": pem}), || pem.clone());
    Ok(0)
}
