//! The command line: one tree of commands, one file each.
//!
//! Data goes to stdout, everything else to stderr, both through `output`. How a command ends is one
//! of the exit codes in `error`; a failure says what, why and what to do. Commands that ask a server
//! are clients like any other, through `connect`.

mod backup;
mod batches;
mod bench;
mod bulk;
mod change;
mod compact;
mod completions;
mod config;
mod connect;
mod cron;
mod dead;
mod demo;
mod doctor;
mod error;
mod events;
mod export;
mod filter;
mod health;
mod jobs;
mod limits;
mod load;
mod man;
mod output;
#[cfg(test)]
mod peer;
mod push;
mod queues;
mod restore;
mod scheduled;
mod serve;
mod stats;
mod systemd;
mod token;
mod upkeep;
mod version;
mod view;
mod work;

use std::{future::Future, process::ExitCode};

use clap::{Parser, Subcommand};

use self::error::CliError;

/// A durable job-queue server. Alone, `ganger` means `ganger serve`.
#[derive(Debug, Parser)]
#[command(name = "ganger", version, args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 not found, \
    4 cannot reach the server, 5 unauthorised, 6 conflict, 7 partly failed, 74 storage error, \
    124 timed out"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::ServeArgs),
    /// Watch a server, producers and workers in one process, on a temporary store
    Demo(demo::DemoArgs),
    /// Add jobs; prints their ids
    Push(Box<push::PushArgs>),
    /// Run a command for each job
    Work(work::WorkArgs),
    /// List and look at jobs, and change those that wait
    #[command(subcommand)]
    Jobs(Box<jobs::JobsCommand>),
    /// Look at and cancel tasks: what is done to many jobs
    #[command(subcommand)]
    Tasks(bulk::TasksCommand),
    /// List jobs that wait for their time
    #[command(subcommand)]
    Scheduled(Box<scheduled::ScheduledCommand>),
    /// Look at, revive and purge dead jobs
    #[command(subcommand)]
    Dead(dead::DeadCommand),
    /// Look at, pause and resume queues
    #[command(subcommand)]
    Queues(queues::QueuesCommand),
    /// Look at, set, run and stop definitions that push jobs over and over
    #[command(subcommand)]
    Cron(cron::CronCommand),
    /// Look at, open and close batches: jobs that are counted together
    #[command(subcommand)]
    Batches(batches::BatchesCommand),
    /// Look at, set and delete limits: how many jobs of a queue or key run, and how fast they begin
    #[command(subcommand)]
    Limits(limits::LimitsCommand),
    /// Follow what happens to jobs, batches and queues
    Events(events::EventsArgs),
    /// Show totals of the namespace and the server
    Stats(stats::StatsArgs),
    /// Write a backup of a running server, or of a closed data directory
    Backup(backup::BackupArgs),
    /// Make a data directory out of a backup
    Restore(restore::RestoreArgs),
    /// Rewrite a closed data directory, so that it gives unused space back
    Compact(compact::CompactArgs),
    /// Look for damage in a closed data directory, and repair it
    Doctor(doctor::DoctorArgs),
    /// Write what a closed data directory holds as lines of JSON
    Export(export::ExportArgs),
    /// Make a data directory out of such lines
    Import(export::ImportArgs),
    /// Measure a running server
    Bench(bench::BenchArgs),
    /// Ask whether a server lives, or is ready
    Health(health::HealthArgs),
    /// Check, show and explain the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Make access tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Print a script that completes commands in a shell
    Completions(completions::CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(man::ManArgs),
    /// Show the version
    Version(version::VersionArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // What cannot be printed cannot be reported either.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::fail(&error);
            error.exit.into()
        }
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => serve::run(args),
        Command::Demo(args) => demo::run(&args),
        Command::Push(args) => block_on(push::run(*args)),
        Command::Work(args) => block_on(work::run(args)),
        Command::Jobs(command) => block_on(jobs::run(*command)),
        Command::Tasks(command) => block_on(bulk::run(command)),
        Command::Scheduled(command) => block_on(scheduled::run(*command)),
        Command::Dead(command) => block_on(dead::run(command)),
        Command::Queues(command) => block_on(queues::run(command)),
        Command::Cron(command) => block_on(cron::run(command)),
        Command::Batches(command) => block_on(batches::run(command)),
        Command::Limits(command) => block_on(limits::run(command)),
        Command::Events(args) => block_on(events::run(args)),
        Command::Stats(args) => block_on(stats::run(args)),
        Command::Backup(args) => backup::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Compact(args) => compact::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Export(args) => export::run_export(&args),
        Command::Import(args) => export::run_import(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Health(args) => block_on(health::run(args)),
        Command::Config(command) => config::run(&command),
        Command::Token(command) => token::run(&command),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Version(args) => version::run(&args),
    }
}

/// Runs a command that waits more than it computes.
fn block_on(command: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| CliError::failed("cannot start").because(&error))?;
    let result = runtime.block_on(command);
    // A read of stdin that still waits must not keep the process.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ganger_alone_serves() {
        let cli = Cli::try_parse_from(["ganger", "--listen", "127.0.0.1:0"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.listen.as_deref(), Some("127.0.0.1:0"));
    }

    #[test]
    fn flags_of_serve_do_not_go_with_another_command() {
        let error = Cli::try_parse_from(["ganger", "--shards", "2", "stats"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }
}
