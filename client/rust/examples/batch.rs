//! Renders the pages of a report, each in a job, and binds them once all are done. The job that
//! plans the report adds the pages to its own batch: how many there are is known only then.
//!
//! `cargo run --example batch -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use ganger_client::{Client, ClientOptions, Context, Failure, Job, LeasedJob, Worker};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    run(url.as_deref().unwrap_or("ganger://localhost")).await
}

/// Opens the batch, and works until the report is bound.
pub(crate) async fn run(url: &str) -> Result<(), Box<dyn std::error::Error>> {
    let options = ClientOptions::from_url(url)?;
    let client = Client::connect(options.clone()).await?;
    let batch = client
        .batch()
        .description("the report of today")
        .on_success(Job::new("bind").queue("reports"))
        .open()
        .await?;
    batch
        .push(Job::new("plan").queue("reports").json(&3)?)
        .await?;
    batch.commit().await?;

    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let worker = Worker::builder(options)
        .queues(["reports"])
        .handler(move |job, context| work(job, context, stopping.clone()))
        .build()?;
    worker.run(stop).await?;

    let counters = batch.show().await?.counters;
    println!("{} of {} are done", counters.done, counters.total);
    client.close().await;
    Ok(())
}

async fn work(job: LeasedJob, context: Context, stop: CancellationToken) -> Result<(), Failure> {
    match (job.kind.as_str(), context.batch()) {
        ("plan", Some(batch)) => {
            for page in 1..=job.read::<u32>()? {
                batch
                    .push(Job::new("render").queue("reports").json(&page)?)
                    .await?;
            }
        }
        ("render", _) => println!("page {}", job.read::<u32>()?),
        _ => {
            println!("all pages are there: bound");
            stop.cancel();
        }
    }
    Ok(())
}
