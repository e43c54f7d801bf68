//! Imports the rows of a file, says how far it has come, stops half-way, and goes on where it
//! stopped. Whoever pushed the job waits for what comes out of it.
//!
//! `cargo run --example progress -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use ganger_client::{
    Client, ClientOptions, Context, Failure, Job, JobResult, LeasedJob, Progress, Worker,
};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let imported = run(url.as_deref().unwrap_or("ganger://localhost")).await?;
    println!("{imported} rows were imported");
    Ok(())
}

/// Pushes an import, works on it, and waits for its result.
pub(crate) async fn run(url: &str) -> Result<u64, Box<dyn std::error::Error>> {
    let options = ClientOptions::from_url(url)?;
    let client = Client::connect(options.clone()).await?;
    let job = Job::new("import").queue("imports").json(&1_000)?;
    let id = client.push(job.retain(Duration::from_secs(3600))).await?;

    let stop = CancellationToken::new();
    let worker = Worker::builder(options)
        .queues(["imports"])
        .handler(import)
        .build()?;
    let (outcome, stopped) = tokio::join!(
        async {
            let outcome = client.wait(id, Duration::from_secs(60)).await;
            stop.cancel();
            outcome
        },
        worker.run(stop.clone()),
    );
    stopped?;
    let imported = outcome?.read()?.ok_or("the import has no result")?;
    client.close().await;
    Ok(imported)
}

async fn import(job: LeasedJob, context: Context) -> Result<JobResult, Failure> {
    let rows: u64 = job.read()?;
    let first: u64 = job.read_cursor()?.unwrap_or(0);
    for row in (first..rows).step_by(100) {
        if row == 500 && job.attempt == 1 {
            return Err(Failure::new("disk", "full for the moment").retry_in(Duration::ZERO));
        }
        let done = row + 100;
        let percent = u8::try_from(done * 100 / rows).unwrap_or(100);
        let progress = Progress::new().percent(percent).note(format!("row {done}"));
        context.progress(progress.cursor(&done)?).await?;
    }
    println!("attempt {} began at row {first}", job.attempt);
    Ok(JobResult::value(&(rows - first))?)
}
