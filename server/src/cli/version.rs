//! `ganger version`.

use ganger_protocol::{VERSION, VERSION_MIN};
use serde::Serialize;

use super::{
    error::CliError,
    output::{Format, pairs},
};

#[derive(Debug, clap::Args)]
pub(super) struct VersionArgs {
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Versions {
    version: &'static str,
    protocol: u32,
    protocol_min: u32,
}

pub(super) fn run(args: &VersionArgs) -> Result<(), CliError> {
    let versions = Versions {
        version: env!("CARGO_PKG_VERSION"),
        protocol: VERSION,
        protocol_min: VERSION_MIN,
    };
    args.format.print(&versions, text)
}

fn text(versions: &Versions) -> String {
    let protocol = format!("{} to {}", versions.protocol_min, versions.protocol);
    pairs(&[
        ("ganger", versions.version.to_owned()),
        ("protocol", protocol),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_shown_with_that_of_the_protocol() {
        let versions = Versions {
            version: "1.2.3",
            protocol: 2,
            protocol_min: 1,
        };
        assert_eq!(text(&versions), "ganger    1.2.3\nprotocol  1 to 2\n");
    }
}
