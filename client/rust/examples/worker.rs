//! Runs the jobs that `examples/push.rs` pushes, until Ctrl-C.
//!
//! `cargo run --example worker -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use ganger_client::{ClientOptions, Context, Failure, LeasedJob, Worker, shutdown_on_signals};

async fn perform(job: LeasedJob, context: Context) -> Result<(), Failure> {
    match job.kind.as_str() {
        "mail" => {
            let mail: serde_json::Value = job.read()?;
            println!("mail {mail}");
            Ok(())
        }
        "render" => {
            let page: u32 = job.read()?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(200)) => {
                    println!("page {page}, attempt {}", job.attempt);
                    Ok(())
                }
                reason = context.cancelled() => {
                    println!("page {page} is not needed: {reason:?}");
                    Err(Failure::release())
                }
            }
        }
        unknown => Err(Failure::new("unknown_kind", format!("no handler for {unknown}")).dead()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("ganger://localhost");
    let worker = Worker::builder(ClientOptions::from_url(url)?)
        .name("example")
        .queues(["mail", "pages"])
        .concurrency(4)
        .drain_timeout(Duration::from_secs(5))
        .handler(perform)
        .build()?;
    let tally = worker.run(shutdown_on_signals()?).await?;
    println!("{} acked, {} failed", tally.acked_count, tally.failed_count);
    Ok(())
}
