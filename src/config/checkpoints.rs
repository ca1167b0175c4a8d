//! The config's part on checkpoints: who signs, how often, and the sinks with their credentials.

use std::{path::PathBuf, time::Duration};

use super::{Credential, Database, Resolver, file, is_name};
use crate::{
    checkpoint::SigningKey,
    secrets::Secret,
    sinks::{FileSettings, S3Settings, SinkSettings, WebhookSettings, default_endpoint},
    upstream::Base,
    yaml::Spanned,
};

const INSTALLATION: &str = "toolgate";
/// The signing key's file below the home of a built-in database.
const BESIDE_BUILT_IN: &str = "secrets/signing.key";
/// The same for any other database, below the directory that the gateway is started in.
const BESIDE_EXTERNAL: &str = ".toolgate/secrets/signing.key";

/// How what is recorded is signed, and who keeps that.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// The name of the key, and the beginning of every log's origin.
    pub installation: String,
    /// The file with the key.
    pub key_file: PathBuf,
    /// Entries after which there is a new checkpoint.
    pub every_entries: u64,
    /// Time after which there is one, if anything is new.
    pub every: Duration,
    /// Who keeps them, by name.
    pub sinks: Vec<(String, SinkSettings)>,
}

impl Resolver<'_> {
    pub(super) fn checkpoints(
        &mut self,
        written: &file::Checkpoints,
        database: Option<&Database>,
    ) -> Checkpoints {
        let installation = match &written.installation {
            Some(raw) => self.installation(raw),
            None => INSTALLATION.to_owned(),
        };
        let key_file = match (&written.key_file, database) {
            (Some(path), _) => self.path(path),
            (None, Some(Database::BuiltIn { home })) => home.join(BESIDE_BUILT_IN),
            (None, _) => PathBuf::from(BESIDE_EXTERNAL),
        };
        let sinks = written
            .sinks
            .iter()
            .filter_map(|(name, sink)| {
                if !is_name(name) {
                    self.wrong(
                        sink,
                        format!("{name:?} cannot be a sink's name"),
                        super::NAME_HELP,
                    );
                }
                Some((name.clone(), self.sink(sink)?))
            })
            .collect();
        Checkpoints {
            installation,
            key_file,
            every_entries: written.every_entries.get(),
            every: Duration::from_secs(written.every_seconds.get()),
            sinks,
        }
    }

    fn installation(&mut self, raw: &Spanned<String>) -> String {
        let name = self.text(raw).unwrap_or_default();
        // A key that is thrown away: its maker knows what a name may be.
        if SigningKey::generate(&name).is_err() {
            self.wrong(
                raw,
                format!("{name:?} cannot name an installation"),
                "write it like toolgate.example.com/production, without spaces and +",
            );
        }
        name
    }

    /// As with the home of a database: relative to the directory that the gateway is started in.
    fn path(&mut self, raw: &Spanned<String>) -> PathBuf {
        PathBuf::from(self.text(raw).unwrap_or_default())
    }

    fn sink(&mut self, written: &Spanned<file::Sink>) -> Option<SinkSettings> {
        match &written.value {
            file::Sink::File { path } => Some(SinkSettings::File(FileSettings {
                path: self.path(path),
            })),
            file::Sink::Webhook {
                url,
                credential,
                ca_file,
                timeout_ms,
            } => {
                let text = self.text(url)?;
                if let Err(error) = WebhookSettings::target(&text) {
                    self.wrong(url, error.to_string(), "write it as https://host/path");
                }
                let header = match credential {
                    None => None,
                    Some(raw) => match self.credential(&raw.value)? {
                        Credential::Header { name, value } => Some((name, value)),
                        Credential::Query { .. } => {
                            self.wrong(
                                raw,
                                "a webhook takes no query credential",
                                "write it into the url: https://host/path?token=${env:NAME}",
                            );
                            None
                        }
                    },
                };
                Some(SinkSettings::Webhook(WebhookSettings {
                    url: Secret::new(text),
                    header,
                    ca_file: ca_file.as_ref().map(|path| self.base.join(path)),
                    timeout: Duration::from_millis(*timeout_ms),
                }))
            }
            file::Sink::S3 { .. } => self.s3(&written.value),
        }
    }

    fn s3(&mut self, written: &file::Sink) -> Option<SinkSettings> {
        let file::Sink::S3 {
            endpoint,
            region,
            bucket,
            prefix,
            access_key_id,
            secret_access_key,
            ca_file,
            timeout_ms,
        } = written
        else {
            return None;
        };
        if !secret_access_key.value.contains("${") {
            self.wrong(
                secret_access_key,
                "the access key stands in the config file itself",
                "take it from ${env:NAME} or ${file:PATH}",
            );
        }
        let region_text = self.text(region)?;
        let endpoint_text = match endpoint {
            Some(endpoint) => self.text(endpoint)?,
            None => default_endpoint(&region_text),
        };
        if let Err(error) = Base::parse(&endpoint_text) {
            self.wrong(
                endpoint.as_ref().unwrap_or(region),
                error.to_string(),
                "write it as https://host",
            );
        }
        let bucket_text = self.text(bucket)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        if bucket_text.is_empty() || bucket_text.starts_with('.') || !bucket_text.bytes().all(plain)
        {
            self.wrong(
                bucket,
                format!("{bucket_text:?} cannot be a bucket"),
                "use letters, digits, '-' and '.'",
            );
        }
        Some(SinkSettings::S3(S3Settings {
            endpoint: endpoint_text,
            region: region_text,
            bucket: bucket_text,
            prefix: prefix.clone(),
            access_key_id: self.text(access_key_id)?,
            secret_access_key: Secret::new(self.text(secret_access_key)?),
            ca_file: ca_file.as_ref().map(|path| self.base.join(path)),
            timeout: Duration::from_millis(*timeout_ms),
        }))
    }
}
