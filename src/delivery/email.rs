//! Mail by SMTP. The text is plain, no header holds a word of the agent's, and the same event has the same Message-ID however
//! often it is sent; everything about one approval hangs on one thread.

use std::{fmt::Write as _, path::Path, time::Duration};

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message as Mail, Tokio1Executor,
    message::{
        Mailbox,
        header::{ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
        extension::ClientId,
    },
};

use super::{Failed, message::Message};
use crate::config::{self, Encryption};

pub(super) struct Email {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
    timeout: Duration,
}

impl Email {
    /// Connects to nothing yet.
    pub(super) fn new(config: &config::Email, timeout: Duration) -> Result<Self, String> {
        let parameters = || tls(&config.host, config.ca_file.as_deref());
        let tls = match config.encryption {
            Encryption::Tls => Tls::Wrapper(parameters()?),
            // Required: a server, or somebody in between, that does not offer STARTTLS gets no mail and no password.
            Encryption::Starttls => Tls::Required(parameters()?),
            Encryption::None => Tls::None,
        };
        let mut builder =
            AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(config.host.as_str())
                .port(config.port)
                .hello_name(ClientId::Domain("toolgate.invalid".to_owned()))
                .timeout(Some(timeout))
                .tls(tls);
        if let Some((username, password)) = &config.login {
            builder = builder.credentials(Credentials::new(
                username.clone(),
                password.expose().to_owned(),
            ));
        }
        Ok(Self {
            transport: builder.build(),
            from: config
                .from
                .clone()
                .ok_or_else(|| "there is no sender".to_owned())?,
            to: config.to.clone(),
            timeout,
        })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), Failed> {
        let mail = self
            .mail(message)
            .map_err(|_invalid| Failed::because("the mail could not be written".to_owned()))?;
        match tokio::time::timeout(self.timeout, self.transport.send(mail)).await {
            Ok(Ok(_accepted)) => Ok(()),
            Ok(Err(error)) => Err(Failed::because(told(&error))),
            Err(_elapsed) => Err(Failed::because("the mail server took too long".to_owned())),
        }
    }

    fn mail(&self, message: &Message) -> Result<Mail, lettre::error::Error> {
        let domain = self.from.email.domain();
        let thread = format!("<{}@{domain}>", message.subject);
        let mut builder = Mail::builder()
            .from(self.from.clone())
            .subject(format!("[Toolgate] {}", message.title))
            .date(message.occurred_at.into())
            .message_id(Some(format!("<{}@{domain}>", message.event_id)))
            .in_reply_to(thread.clone())
            .references(thread)
            .raw_header(HeaderValue::new(
                // RFC 3834: no out-of-office note comes back.
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".to_owned(),
            ))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            builder = builder.to(to.clone());
        }
        builder.body(body(message))
    }
}

fn tls(host: &str, ca_file: Option<&Path>) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(host.to_owned());
    if let Some(path) = ca_file {
        let wrong =
            |problem: String| format!("the CA file {} cannot be used: {problem}", path.display());
        let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        let certificate = Certificate::from_pem(&pem).map_err(|error| wrong(error.to_string()))?;
        builder = builder.add_root_certificate(certificate);
    }
    builder.build_rustls().map_err(|error| error.to_string())
}

fn body(message: &Message) -> String {
    let mut text = format!("{}.\n\n", message.title);
    // Writing to a String cannot fail.
    for (label, value) in &message.facts {
        let _ = writeln!(text, "{:<13}{value}", format!("{label}:"));
    }
    if !message.agent_words.is_empty() {
        text.push_str("\nThe agent's own words, which nobody has checked:\n");
        for (label, value) in &message.agent_words {
            let _ = writeln!(text, "> {label}: {value}");
        }
    }
    if let Some(link) = &message.link {
        let _ = write!(text, "\nOpen it in Toolgate:\n{link}\n");
    }
    text
}

/// What went wrong, without what the server said: its words may name people.
fn told(error: &lettre::transport::smtp::Error) -> String {
    if let Some(code) = error.status() {
        format!("the mail server answered {code}")
    } else if error.is_timeout() {
        "the mail server took too long".to_owned()
    } else if is_tls(error) {
        "no protected connection to the mail server: it speaks no TLS, or its certificate is not trusted"
            .to_owned()
    } else if error.is_client() {
        "the mail server does not offer what is needed: STARTTLS, or a way to log in".to_owned()
    } else {
        "no connection to the mail server".to_owned()
    }
}

/// Whether TLS failed: lettre tells of a failed handshake as of any lost connection, with the reason among its sources.
fn is_tls(error: &lettre::transport::smtp::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let inner = cause
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        source = cause.source();
    }
    error.is_tls()
}
