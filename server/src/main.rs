//! The executable `ganger`: everything is in [`ganger_server::cli`].

/// A tenth less CPU a job than the system's allocator; see docs/BENCHMARKS.md.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ganger_server::cli::main()
}
