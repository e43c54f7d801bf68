//! The executable `ganger`: everything is in [`ganger_server::cli`].

fn main() -> std::process::ExitCode {
    ganger_server::cli::main()
}
