//! `toolgate audit hash`: from a value that somebody knows to what stands in its place in the records.

use std::{
    io::{Read as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;

use crate::{
    cli::check,
    config::{self, Variables},
    redaction,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct HashArgs {
    /// The value; left out or `-`: read from standard input, so that it stays out of the shell's history.
    value: Option<String>,
    /// The config file, for the master secret.
    #[arg(long, value_name = "FILE", default_value = "config/toolgate.yaml")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: HashArgs) -> anyhow::Result<ExitCode> {
    let file = config::read_file(args.config).map_err(anyhow::Error::msg)?;
    let (config, findings) = config::load(&file, &Variables::default());
    let Some(config) = config else {
        check::print(&findings);
        anyhow::bail!("the config has problems");
    };
    let value = match args.value.filter(|value| value != "-") {
        Some(value) => value,
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
    };
    anyhow::ensure!(!value.is_empty(), "say which value");
    let keys = config.keyring()?;
    let secrets = keys.secret_ids();
    let tokens: Vec<_> = secrets
        .iter()
        .zip(redaction::tokens_by_secret(&value, &keys))
        .flat_map(|(secret, forms)| {
            forms
                .into_iter()
                .map(move |(form, token)| (secret, form, token))
        })
        .collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        let forms: Vec<_> = tokens
            .iter()
            .map(|(secret, form, token)| {
                serde_json::json!({"form": form, "token": token, "secret": secret})
            })
            .collect();
        writeln!(out, "{}", serde_json::Value::from(forms))?;
        return Ok(ExitCode::SUCCESS);
    }
    for (secret, form, token) in &tokens {
        if secrets.len() == 1 {
            writeln!(out, "{token}  {form}")?;
        } else {
            writeln!(out, "{token}  {form}, under master secret {secret}")?;
        }
    }
    let list: Vec<&str> = tokens.iter().map(|(_, _, token)| token.as_str()).collect();
    writeln!(
        out,
        "\nSELECT * FROM audit.entries WHERE value_tokens && ARRAY['{}'];",
        list.join("', '")
    )?;
    Ok(ExitCode::SUCCESS)
}
