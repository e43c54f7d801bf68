//! From `--url` and the environment to a connected client.

use std::{fs, path::PathBuf};

use ganger_client::{Client, ClientOptions};
use ganger_protocol::NamespaceName;

use super::error::CliError;

/// Which server, and as whom.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ConnectArgs {
    /// The server: ganger://[:token@]host[:port][/namespace]
    #[arg(
        long,
        env = "GANGER_URL",
        hide_env_values = true,
        default_value = "ganger://127.0.0.1"
    )]
    url: String,
    /// The namespace, instead of the url's
    #[arg(long)]
    namespace: Option<NamespaceName>,
    /// A file with the token, id.secret; or the token itself in GANGER_TOKEN
    #[arg(long, env = "GANGER_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

impl ConnectArgs {
    /// The options of a client; the token of the file goes before that of the environment, which
    /// goes before that of the url.
    pub(super) fn options(&self) -> Result<ClientOptions, CliError> {
        self.options_with(
            std::env::var("GANGER_TOKEN")
                .ok()
                .filter(|token| !token.is_empty()),
        )
    }

    /// A client that the server has accepted.
    pub(super) async fn connect(&self) -> Result<Client, CliError> {
        Ok(Client::connect(self.options()?).await?)
    }

    fn options_with(&self, token: Option<String>) -> Result<ClientOptions, CliError> {
        let usage = |error| CliError::usage("this is no address of a server").because(&error);
        let mut options = ClientOptions::from_url(&self.url).map_err(usage)?;
        options = options.name(concat!("ganger-cli/", env!("CARGO_PKG_VERSION")));
        if let Some(namespace) = &self.namespace {
            options = options.namespace(namespace.clone());
        }
        let token = match &self.token_file {
            Some(path) => Some(fs::read_to_string(path).map_err(|error| {
                CliError::usage(format!("cannot read the token file {}", path.display()))
                    .because(&error)
            })?),
            None => token,
        };
        match token {
            Some(token) => options
                .token(token.trim())
                .map_err(|error| CliError::usage("the token is none").because(&error)),
            None => Ok(options),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(url: &str) -> ConnectArgs {
        ConnectArgs {
            url: url.to_owned(),
            namespace: None,
            token_file: None,
        }
    }

    #[test]
    fn a_url_of_another_shape_is_wrong_usage() {
        let error = args("http://localhost").options_with(None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "error: this is no address of a server\n\
             cause: a url begins with ganger://, as in ganger://host:4264/namespace"
        );
    }

    #[test]
    fn a_token_comes_from_a_file_and_ends_without_its_newline() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "id.secret\n").unwrap();
        let with_file = ConnectArgs {
            token_file: Some(path.clone()),
            ..args("ganger://h")
        };
        assert!(format!("{:?}", with_file.options_with(None).unwrap()).contains("\"id\""));
        fs::write(&path, "nonsense").unwrap();
        let error = with_file.options_with(None).unwrap_err();
        assert_eq!(error.exit.code(), 2);
        fs::remove_file(&path).unwrap();
        assert_eq!(
            with_file
                .options_with(Some("a.b".to_owned()))
                .unwrap_err()
                .exit
                .code(),
            2
        );
    }
}
