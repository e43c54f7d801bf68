//! `ganger token new`: a secret for a client, and its hash for the server.

use clap::Subcommand;
use ganger_protocol::{NamespaceName, QueuePattern};
use serde::Serialize;

use super::{
    error::CliError,
    output::{self, Format},
};
use crate::auth::{self, NewToken, TokenId, Verb};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token: the token to stdout, its entry for the server's configuration to stderr
    New(NewArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct NewArgs {
    /// Its public part; drawn at random when it is not given
    #[arg(long)]
    id: Option<TokenId>,
    /// What it may be used for
    #[arg(long, value_delimiter = ',', default_value = "push,work")]
    verbs: Vec<Verb>,
    /// In which namespaces; all when none is given
    #[arg(long, value_delimiter = ',')]
    namespaces: Vec<NamespaceName>,
    /// For which queues, names or prefixes with a final *; all when none is given
    #[arg(long, value_delimiter = ',')]
    queues: Vec<QueuePattern>,
    #[command(flatten)]
    format: Format,
}

pub(super) fn run(command: &TokenCommand) -> Result<(), CliError> {
    let TokenCommand::New(args) = command;
    let no_luck = |error| CliError::failed("cannot make a token").because(&error);
    let id = match &args.id {
        Some(id) => id.clone(),
        None => random_id().map_err(no_luck)?,
    };
    let token = NewToken::generate(&id).map_err(no_luck)?;
    if args.format.json {
        return output::line(&output::json(&shown(args, &id, &token))?);
    }
    output::note(&entry(args, &id, &token));
    output::line(token.text.expose())
}

fn random_id() -> Result<TokenId, auth::NoRandomness> {
    let number = u64::from_be_bytes(auth::random()?);
    Ok(TokenId::numbered(number))
}

#[derive(Debug, Serialize)]
struct Shown<'a> {
    token: &'a str,
    id: &'a str,
    hash: String,
    verbs: &'a [Verb],
}

fn shown<'a>(args: &'a NewArgs, id: &'a TokenId, token: &'a NewToken) -> Shown<'a> {
    Shown {
        token: token.text.expose(),
        id: id.as_str(),
        hash: token.hash.to_hex(),
        verbs: &args.verbs,
    }
}

/// The entry of the configuration, as TOML.
fn entry(args: &NewArgs, id: &TokenId, token: &NewToken) -> String {
    fn list(names: impl IntoIterator<Item = impl ToString>) -> String {
        let names = names
            .into_iter()
            .map(|name| format!("\"{}\"", name.to_string()));
        names.collect::<Vec<_>>().join(", ")
    }
    let mut text = format!(
        "# for the server's configuration; the token itself is not kept anywhere\n\
         [[auth.token]]\n\
         id = \"{id}\"\n\
         hash = \"{}\"\n\
         verbs = [{}]\n",
        token.hash.to_hex(),
        list(args.verbs.iter().map(|verb| verb.as_str())),
    );
    for (field, names) in [
        ("namespaces", list(&args.namespaces)),
        ("queues", list(&args.queues)),
    ] {
        if !names.is_empty() {
            text.extend([field, " = [", &names, "]\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::TokenConfig,
        config::{Config, Layers},
    };

    #[test]
    fn the_entry_is_one_that_the_configuration_takes() {
        let args = NewArgs {
            id: None,
            verbs: vec![Verb::Push, Verb::Inspect],
            namespaces: vec!["blue".parse().unwrap()],
            queues: vec!["mail.*".parse().unwrap(), "sms".parse().unwrap()],
            format: Format::default(),
        };
        let id = random_id().unwrap();
        let token = NewToken::generate(&id).unwrap();
        let files = vec![("g.toml".into(), entry(&args, &id, &token))];
        let (config, _) = Config::load(Layers {
            files,
            ..Layers::default()
        })
        .unwrap();
        let expected = TokenConfig {
            id,
            hash: token.hash,
            verbs: args.verbs,
            namespaces: Some(args.namespaces),
            queues: Some(args.queues),
        };
        assert_eq!(config.auth.token, [expected]);
    }
}
