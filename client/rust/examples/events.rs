//! Follows what happens to jobs that another part of the program pushes and works on.
//!
//! `cargo run --example events -- ganger://localhost`

#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::time::Duration;

use ganger_client::{
    Client, ClientOptions, Failure, Followed, Job, Worker,
    protocol::event::{EventFilter, EventName},
};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let failures = run(url.as_deref().unwrap_or("ganger://localhost")).await?;
    println!("{failures} attempts failed");
    Ok(())
}

/// How many attempts failed before the job was done.
pub(crate) async fn run(url: &str) -> Result<usize, Box<dyn std::error::Error>> {
    let options = ClientOptions::from_url(url)?;
    let client = Client::connect(options.clone()).await?;
    let filter = EventFilter {
        queues: vec!["followed".parse()?],
        events: vec![EventName::Granted, EventName::Failed, EventName::Done],
        ..EventFilter::default()
    };
    // Before the job is pushed: events are told from now on.
    let mut events = client.subscribe(filter).await?;
    client.push(Job::new("flaky").queue("followed")).await?;

    let stop = CancellationToken::new();
    let worker = Worker::builder(options)
        .queues(["followed"])
        .handler(|job, _context| async move {
            match job.attempt {
                1 | 2 => Err(Failure::new("flaky", "not yet").retry_in(Duration::ZERO)),
                _ => Ok(()),
            }
        })
        .build()?;
    let follow = async {
        let mut failures = 0;
        loop {
            match events.next().await? {
                Followed::Event(event) => {
                    println!("{} {:?}", event.event.as_str(), event.attempt);
                    match event.event {
                        EventName::Failed => failures += 1,
                        EventName::Done => return Ok::<_, ganger_client::Error>(failures),
                        _ => {}
                    }
                }
                Followed::Gap(gap) => println!("{:?} events were missed", gap.missed),
                _ => {}
            }
        }
    };
    let (failures, stopped) = tokio::join!(
        async {
            let failures = follow.await;
            stop.cancel();
            failures
        },
        worker.run(stop.clone()),
    );
    stopped?;
    client.close().await;
    Ok(failures?)
}
