//! The executable `ganger` once more, so that the tests of this package find it built.

fn main() -> std::process::ExitCode {
    ganger_server::cli::main()
}
