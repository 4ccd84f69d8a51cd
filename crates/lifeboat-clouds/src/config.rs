//! What a connection is made of. Secrets are taken from the environment's variables, and shown nowhere.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};

use crate::federation::{self, ExternalAccount};

/// Whose store it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

/// How to reach a bucket, or a container, as Azure says. `Config::of` is what the cloud itself needs.
#[derive(Clone)]
pub struct Config {
    /// Whose store it is.
    pub cloud: Cloud,
    /// The bucket, or the container.
    pub bucket: String,
    /// The storage account of Azure. Otherwise `AZURE_STORAGE_ACCOUNT`.
    pub account: Option<String>,
    /// The server, where it is not the cloud's own: `https://host:port`, for Azure with the account behind it where the server wants that.
    pub endpoint: Option<String>,
    /// A file with credentials of Google: of a service account, or those that gcloud leaves. Otherwise `GOOGLE_APPLICATION_CREDENTIALS`.
    pub credentials_file: Option<PathBuf>,
    /// PEM certificates to believe instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Variables to look credentials up in; `None`: those of the process.
    pub variables: Option<Vec<(String, String)>>,
    /// Time for the connection to stand.
    pub connect_timeout: Duration,
    /// Time without a byte before an answer counts as lost.
    pub read_timeout: Duration,
    /// How often an operation is tried before it fails.
    pub max_attempts: u32,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Config({:?}, {})", self.cloud, self.bucket)
    }
}

/// Where the server is and how requests are built, before anybody is asked.
pub(crate) struct Resolved<B> {
    pub(crate) builder: B,
    pub(crate) endpoint: String,
    /// The storage account, or nothing.
    pub(crate) account: String,
    /// Whether requests carry no credentials: an emulator of Google's wants none.
    pub(crate) anonymous: bool,
    /// Whose tokens are exchanged for Google's.
    pub(crate) federation: Option<ExternalAccount>,
}

impl Config {
    /// A configuration with the defaults of a cloud.
    pub fn of(cloud: Cloud, bucket: &str) -> Self {
        Self {
            cloud,
            bucket: bucket.to_owned(),
            account: None,
            endpoint: None,
            credentials_file: None,
            ca_file: None,
            variables: None,
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(30),
            // With the waits between them, about forty seconds of a store that is away.
            max_attempts: 9,
        }
    }

    fn variables(&self) -> Vec<(String, String)> {
        let all = match &self.variables {
            Some(variables) => variables.clone(),
            None => std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect(),
        };
        all.into_iter().filter(|(_, value)| !value.is_empty()).collect()
    }

    pub(crate) fn google(&self) -> Result<Resolved<GoogleCloudStorageBuilder>, String> {
        let mut builder = GoogleCloudStorageBuilder::new();
        let mut endpoint = None;
        let mut emulator = None;
        let (mut credentials, mut federation) = (false, None);
        for (name, value) in self.variables() {
            let key = match name.as_str() {
                // Google's own libraries read this one, and send no credentials there.
                "STORAGE_EMULATOR_HOST" => {
                    emulator = Some(if value.contains("://") { value } else { format!("http://{value}") });
                    continue;
                }
                "GOOGLE_BASE_URL" => {
                    endpoint = Some(value);
                    continue;
                }
                "CLOUDSDK_AUTH_ACCESS_TOKEN" => GoogleConfigKey::BearerToken,
                _ if name.starts_with("GOOGLE_") => match name.to_ascii_lowercase().parse() {
                    Ok(key) => key,
                    Err(_) => continue,
                },
                _ => continue,
            };
            // Whatever else has a name there is about buckets and clients of other programs.
            let credential = matches!(
                key,
                GoogleConfigKey::ServiceAccount
                    | GoogleConfigKey::ServiceAccountKey
                    | GoogleConfigKey::ApplicationCredentials
                    | GoogleConfigKey::BearerToken
            );
            if credential && self.credentials_file.is_none() {
                credentials = true;
                let file = matches!(key, GoogleConfigKey::ServiceAccount | GoogleConfigKey::ApplicationCredentials);
                match if file { federation::read(Path::new(&value))? } else { None } {
                    Some(account) => federation = Some(account),
                    None => builder = builder.with_config(key, value),
                }
            }
        }
        if let Some(path) = &self.credentials_file {
            credentials = true;
            federation = federation::read(path)?;
            if federation.is_none() {
                builder = builder.with_application_credentials(path.display().to_string());
            }
        }
        if builder.get_config_value(&GoogleConfigKey::BearerToken).is_some() {
            federation = None;
        }
        let anonymous = self.endpoint.is_none() && endpoint.is_none() && emulator.is_some() && !credentials;
        if anonymous {
            // It wants some; none of them is sent.
            builder = builder.with_bearer_token("none").with_skip_signature(true);
        }
        let endpoint = self.endpoint.clone().or(endpoint).or(emulator).unwrap_or_else(|| "https://storage.googleapis.com".into());
        let endpoint = checked(&endpoint)?;
        let builder = builder.with_bucket_name(&self.bucket).with_base_url(&endpoint);
        Ok(Resolved { builder, endpoint, account: String::new(), anonymous, federation })
    }

    pub(crate) fn azure(&self) -> Result<Resolved<MicrosoftAzureBuilder>, String> {
        use AzureConfigKey as Key;
        let mut builder = MicrosoftAzureBuilder::new();
        let (mut account, mut endpoint) = (None, None);
        for (name, value) in self.variables() {
            let key = match name.as_str() {
                "AZURE_STORAGE_CONNECTION_STRING" => {
                    // What stands in it counts less than what is said alone.
                    let parts = connection_string(&value);
                    for (key, value) in parts.credentials {
                        if builder.get_config_value(&key).is_none() {
                            builder = builder.with_config(key, value);
                        }
                    }
                    account = account.or(parts.account);
                    endpoint = endpoint.or(parts.endpoint);
                    continue;
                }
                // The names that the command line and azcopy use.
                "AZURE_STORAGE_ACCOUNT" => Key::AccountName,
                "AZURE_STORAGE_KEY" => Key::AccessKey,
                _ if name.starts_with("AZURE_") => match name.to_ascii_lowercase().parse() {
                    Ok(key) => key,
                    Err(_) => continue,
                },
                // Where a managed identity is asked, in Azure's own services.
                "IDENTITY_ENDPOINT" => Key::MsiEndpoint,
                _ => continue,
            };
            match key {
                Key::AccountName => account = Some(value),
                Key::Endpoint => endpoint = Some(value),
                Key::AccessKey
                | Key::ClientId
                | Key::ClientSecret
                | Key::AuthorityId
                | Key::AuthorityHost
                | Key::SasKey
                | Key::Token
                | Key::MsiEndpoint
                | Key::ObjectId
                | Key::MsiResourceId
                | Key::FederatedTokenFile
                | Key::UseAzureCli
                | Key::CredentialType => builder = builder.with_config(key, value),
                // Containers, emulators and customer's keys of other programs.
                _ => {}
            }
        }
        let account = self.account.clone().or(account);
        let account = account.ok_or("no storage account: account in [[repository]], or AZURE_STORAGE_ACCOUNT, names it")?;
        // "Storage account overview": it becomes part of a host's name.
        if account.is_empty() || account.len() > 63 || !account.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err("a storage account's name has 3 to 24 of a-z and 0-9".into());
        }
        let endpoint = self.endpoint.clone().or(endpoint).unwrap_or_else(|| format!("https://{account}.blob.core.windows.net"));
        let endpoint = checked(&endpoint)?;
        let builder = builder.with_container_name(&self.bucket).with_account(&account).with_endpoint(endpoint.clone());
        Ok(Resolved { builder, endpoint, account, anonymous: false, federation: None })
    }
}

/// An address of a server, without a `/` at its end.
fn checked(endpoint: &str) -> Result<String, String> {
    let rest = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
    if rest.is_none_or(|rest| rest.is_empty() || rest.contains(['@', '?', '#', ' '])) || endpoint.parse::<::http::Uri>().is_err() {
        return Err("an endpoint is http:// or https://, a host and maybe a port, without credentials".into());
    }
    Ok(endpoint.trim_end_matches('/').to_owned())
}

/// What a connection string of Azure says.
#[derive(Default)]
struct ConnectionString {
    credentials: Vec<(AzureConfigKey, String)>,
    account: Option<String>,
    endpoint: Option<String>,
}

/// "Configure Azure Storage connection strings": `Name=value`, with `;` between.
fn connection_string(text: &str) -> ConnectionString {
    let mut parts = ConnectionString::default();
    let (mut protocol, mut suffix) = ("https", None);
    for (name, value) in text.split(';').filter_map(|part| part.split_once('=')) {
        match name.trim() {
            "AccountName" => parts.account = Some(value.to_owned()),
            "AccountKey" => parts.credentials.push((AzureConfigKey::AccessKey, value.to_owned())),
            "SharedAccessSignature" => parts.credentials.push((AzureConfigKey::SasKey, value.to_owned())),
            "BlobEndpoint" => parts.endpoint = Some(value.to_owned()),
            "DefaultEndpointsProtocol" => protocol = value,
            "EndpointSuffix" => suffix = Some(value),
            _ => {}
        }
    }
    if let (None, Some(suffix), Some(account)) = (&parts.endpoint, suffix, &parts.account) {
        parts.endpoint = Some(format!("{protocol}://{account}.blob.{suffix}"));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn azure(variables: &[(&str, &str)]) -> Config {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config { variables: Some(variables), ..Config::of(Cloud::Azure, "backups") }
    }

    #[test]
    fn a_connection_string_says_account_key_and_endpoint() {
        let text = "DefaultEndpointsProtocol=https;AccountName=acme;AccountKey=aGVsbG8=;EndpointSuffix=core.chinacloudapi.cn";
        let resolved = azure(&[("AZURE_STORAGE_CONNECTION_STRING", text)]).azure().unwrap();
        assert_eq!((resolved.account.as_str(), resolved.endpoint.as_str()), ("acme", "https://acme.blob.core.chinacloudapi.cn"));
        assert_eq!(resolved.builder.get_config_value(&AzureConfigKey::AccessKey).as_deref(), Some("aGVsbG8="));
        let resolved = azure(&[("AZURE_STORAGE_CONNECTION_STRING", text), ("AZURE_STORAGE_KEY", "b3RoZXI=")]).azure().unwrap();
        assert_eq!(resolved.builder.get_config_value(&AzureConfigKey::AccessKey).as_deref(), Some("b3RoZXI="));
    }

    #[test]
    fn the_file_comes_before_the_environment() {
        let config = Config {
            account: Some("mine".into()),
            endpoint: Some("http://127.0.0.1:1/mine/".into()),
            ..azure(&[("AZURE_STORAGE_ACCOUNT", "theirs"), ("AZURE_STORAGE_ENDPOINT", "https://theirs"), ("AZURE_CONTAINER_NAME", "x")])
        };
        let resolved = config.azure().unwrap();
        assert_eq!((resolved.account.as_str(), resolved.endpoint.as_str()), ("mine", "http://127.0.0.1:1/mine"));
        assert_eq!(resolved.builder.get_config_value(&AzureConfigKey::ContainerName).as_deref(), Some("backups"));
        assert!(azure(&[]).azure().is_err_and(|reason| reason.contains("AZURE_STORAGE_ACCOUNT")));
    }

    #[test]
    fn an_emulator_gets_no_credentials_unless_there_are_some() {
        let config = |variables: &[(&str, &str)]| Config { cloud: Cloud::Google, ..azure(variables) };
        let resolved = config(&[("STORAGE_EMULATOR_HOST", "127.0.0.1:9")]).google().unwrap();
        assert_eq!((resolved.endpoint.as_str(), resolved.anonymous), ("http://127.0.0.1:9", true));
        assert!(!config(&[("STORAGE_EMULATOR_HOST", "127.0.0.1:9"), ("GOOGLE_BEARER_TOKEN", "t")]).google().unwrap().anonymous);
        let resolved = config(&[]).google().unwrap();
        assert_eq!((resolved.endpoint.as_str(), resolved.anonymous), ("https://storage.googleapis.com", false));
    }

    #[test]
    fn secrets_do_not_show() {
        let config = azure(&[("AZURE_STORAGE_KEY", "hunter2")]);
        assert!(!format!("{config:?}").contains("hunter2"));
        for endpoint in ["https://me:hunter2@host", "https://host/?sig=hunter2", "ftp://host", "http://", "host:9000"] {
            let config = Config { endpoint: Some(endpoint.into()), account: Some("a".into()), ..config.clone() };
            assert!(config.azure().is_err_and(|reason| !reason.contains("hunter2")), "{endpoint}");
        }
    }
}
