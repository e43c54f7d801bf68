//! `ganger completions`: a script for a shell, made from the tree of commands.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, error::CliError, output};

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ganger", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn each_shell_gets_a_script_that_knows_the_commands() {
        for shell in Shell::value_variants() {
            run(&CompletionsArgs { shell: *shell }).unwrap();
            let script = output::sink::take().0;
            assert!(
                script.contains("ganger") && script.contains("revive"),
                "{shell}"
            );
        }
    }
}
