//! Sets a definition that pushes a job over and over, works on its first three jobs, and deletes it.
//! A program may set its entries whenever it starts: doing it again changes nothing.
//!
//! `cargo run --example cron -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use ganger_client::{
    Client, ClientOptions, Cron, Job, Worker,
    protocol::cron::{AT_HEADER, Overlap},
};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let options = ClientOptions::from_url(url.as_deref().unwrap_or("ganger://localhost"))?;
    let client = Client::connect(options.clone()).await?;

    let nightly = Cron::new("nightly", Job::new("report").queue("reports"))
        .expression("30 4 * * MON-FRI")
        .timezone("Europe/Berlin");
    let nightly = client.cron_set(nightly).await?;
    println!("nightly comes at {:?}", nightly.next_at);

    let sweep = Cron::new("sweep", Job::new("sweep").queue("sweeps"))
        .every(Duration::from_secs(1))
        .overlap(Overlap::Skip);
    client.cron_set(sweep).await?;

    let stop = CancellationToken::new();
    let (stopping, swept) = (stop.clone(), Arc::new(AtomicU32::new(0)));
    let worker = Worker::builder(options)
        .queues(["sweeps"])
        .concurrency(1)
        .handler(move |job, _context| {
            println!("sweeping for {:?}", job.headers.get(AT_HEADER));
            if swept.fetch_add(1, Ordering::Relaxed) == 2 {
                stopping.cancel();
            }
            async { Ok(()) }
        })
        .build()?;
    worker.run(stop).await?;

    client
        .cron_delete(vec!["nightly".parse()?, "sweep".parse()?])
        .await?;
    Ok(())
}
