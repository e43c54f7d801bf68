//! Makes a book: pages and a cover, which wait for a plan and not for each other, and the binding,
//! which waits for both. All four are pushed at once; the server lets each go on when its time is
//! there.
//!
//! `cargo run --example workflow -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use ganger_client::{Client, ClientOptions, Context, Failure, Job, LeasedJob, Worker};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    run(url.as_deref().unwrap_or("ganger://localhost")).await
}

/// Pushes the workflow, and works until the book is bound.
pub(crate) async fn run(url: &str) -> Result<(), Box<dyn std::error::Error>> {
    let options = ClientOptions::from_url(url)?;
    let client = Client::connect(options.clone()).await?;
    let job = |kind| Job::new(kind).queue("books");
    // The batch shows the four as one graph; without one they would wait for each other just so.
    let batch = client.batch().description("the book").open().await?;
    batch
        .workflow()
        .job("plan", job("plan"))
        .job("pages", job("render").after(["plan"]))
        .job("cover", job("draw").after(["plan"]))
        .job("book", job("bind").after(["pages", "cover"]))
        .push()
        .await?;
    batch.commit().await?;
    for node in batch.graph(None, 100).await?.nodes {
        println!("{} is {}", node.kind, node.state);
    }

    let stop = CancellationToken::new();
    let stopping = stop.clone();
    let worker = Worker::builder(options)
        .queues(["books"])
        .handler(move |job: LeasedJob, _context: Context| {
            work(&job, &stopping);
            async { Ok::<(), Failure>(()) }
        })
        .build()?;
    worker.run(stop).await?;
    client.close().await;
    Ok(())
}

fn work(job: &LeasedJob, stop: &CancellationToken) {
    println!("{}", job.kind);
    if job.kind.as_str() == "bind" {
        stop.cancel();
    }
}
