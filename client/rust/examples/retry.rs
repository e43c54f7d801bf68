//! Says what follows a failed attempt: another one after the job's backoff or after a time of its
//! own, none at all, or the lease given back without counting.
//!
//! `cargo run --example retry -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use ganger_client::{
    Client, ClientOptions, Failure, Job, LeasedJob, Worker, protocol::RetryPolicy,
    shutdown_on_signals,
};

/// What the far side of a charge answers.
fn status(job: &LeasedJob) -> u16 {
    match job.attempt {
        1 => 503,
        2 => 429,
        _ => 200,
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let options = ClientOptions::from_url(url.as_deref().unwrap_or("ganger://localhost"))?;

    let client = Client::connect(options.clone()).await?;
    let every_second = RetryPolicy::fixed(ganger_client::protocol::DurationMs::from_secs(1));
    let job = Job::new("charge")
        .queue("payments")
        .max_attempts(5)
        .backoff(every_second);
    client.push(job.payload(&1999)?).await?;

    let worker = Worker::builder(options)
        .queues(["payments"])
        .handler(|job, _context| async move {
            let cents: u32 = job.read()?;
            println!("attempt {} at {cents} cents", job.attempt);
            match status(&job) {
                200 => Ok(()),
                // Their limit, not our failure: another try costs nothing.
                429 => Err(Failure::release_for(Duration::from_secs(2))),
                402 => Err(Failure::new("declined", "no money").dead()),
                410 => Err(Failure::new("gone", "the order was deleted").discard()),
                503 => Err(Failure::new("busy", "try later").retry_in(Duration::from_secs(1))),
                other => Err(Failure::new("http", format!("status {other}"))),
            }
        })
        .build()?;
    worker.run(shutdown_on_signals()?).await?;
    Ok(())
}
